/* A disk that refuses single calls, below any program: LD_PRELOAD this as a shared library.

   REFUSE_FOLDER  the folder whose files it watches
   REFUSE         faults, separated by ";": "call pattern number errno" lets the number-th (from 1; 0: each) write,
                  fsync, rename, link, open (for writing) or mkdir of this process fail that is of a path matching the pattern
   REFUSE_LOG     a file that gets a line for each such call: "call path", the path within the folder */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MOST 64

static struct { char call[16], pattern[200]; int number, error, seen; } faults[MOST];
static int num_faults, log_to = -1;
static const char *folder;

__attribute__((constructor)) static void read_faults(void) {
    folder = getenv("REFUSE_FOLDER");
    const char *log = getenv("REFUSE_LOG"), *text = getenv("REFUSE");
    if (log) log_to = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    for (; text && num_faults < MOST; text = strchr(text, ';') ? strchr(text, ';') + 1 : NULL)
        num_faults += sscanf(text, "%15s %199s %d %d", faults[num_faults].call, faults[num_faults].pattern,
                             &faults[num_faults].number, &faults[num_faults].error) == 4;
}

static int refused(const char *call, const char *path) {
    size_t length = folder ? strlen(folder) : 0;
    if (!length || strncmp(path, folder, length) || path[length] != '/') return 0;
    int before = errno;
    if (log_to >= 0) {
        char line[600];
        int size = snprintf(line, sizeof line, "%s %s\n", call, path + length + 1);
        if (REAL(write)(log_to, line, size) != size) abort();
    }
    errno = before;
    for (int i = 0; i < num_faults; i++)
        if (!strcmp(call, faults[i].call) && !fnmatch(faults[i].pattern, path + length + 1, 0)) {
            int seen = __atomic_add_fetch(&faults[i].seen, 1, __ATOMIC_SEQ_CST);
            if (!faults[i].number || seen == faults[i].number) {
                errno = faults[i].error;
                return 1;
            }
        }
    return 0;
}

static int refused_of(const char *call, int file) {
    char link[40], path[500];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return refused(call, path);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        return flags & (O_WRONLY | O_RDWR) && refused("open", path) ? -1 : REAL(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        return flags & (O_WRONLY | O_RDWR) && refused("open", path) ? -1 : REAL(name)(at, path, flags, mode); \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) { return refused_of("write", file) ? -1 : REAL(write)(file, data, size); }
ssize_t writev(int file, const struct iovec *data, int n) { return refused_of("write", file) ? -1 : REAL(writev)(file, data, n); }
int fsync(int file) { return refused_of("fsync", file) ? -1 : REAL(fsync)(file); }
int rename(const char *from, const char *to) { return refused("rename", to) ? -1 : REAL(rename)(from, to); }
int link(const char *from, const char *to) { return refused("link", to) ? -1 : REAL(link)(from, to); }
int mkdir(const char *path, mode_t mode) { return refused("mkdir", path) ? -1 : REAL(mkdir)(path, mode); }
