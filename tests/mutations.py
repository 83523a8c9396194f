"""Are the tests any good? Deliberate defects, one at a time, each of which some test has to notice.

    python -m tests.mutations [NAME ...]

For each, a copy of the repository with one piece of code replaced, and the tests named beside it; a defect that they
pass with has survived. Prints every survivor, and the share that was caught; exit code 1 if that is under 95%. About
ten minutes on two cores; no part of CI.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.constants import ROOT

LONGEST = 600  # seconds; tests that hang have noticed


class Mutation(NamedTuple):
    path: str
    old: str
    new: str
    tests: str


CHAT_EXPORT = "tests/lm/export/test_chat_export.py"
FINISH = "tests/data/test_finish.py"
LOST = "tests/lm/train/test_lost_files.py"
GENERATE = "tests/lm/inference/test_generate.py"
LAYOUTS = "tests/data/sources/test_layouts.py"
HUB = "tests/data/sources/test_hub_cells.py tests/data/sources/test_hub.py"
CHECKPOINT, STREAM, STEP = (
    "tests/lm/checkpoint/test_checkpoint.py tests/lm/checkpoint/test_checkpoint_reading.py",
    "tests/data/test_stream.py tests/data/test_stream_kills.py tests/data/test_stream_memory.py",
    "tests/lm/test_train_step.py",
)
TEMPLATE, TALKS = "tests/data/test_chat_template.py", "tests/data/test_chat_stream.py"
HOSTILE_TEMPLATE = "tests/data/test_template_renderer.py"
MUTATIONS = {
    "a milestone's branch begins with the whole run's files": Mutation(
        "lm/export/upload.py", "branch=name, revision=first,", "branch=name,", "tests/lm/export/test_upload.py"
    ),
    "a milestone's branch keeps what another run left": Mutation(
        "lm/export/upload.py", 'delete_patterns="*",', "", "tests/lm/export/test_upload.py"
    ),
    "llama.cpp is told another rule for digits": Mutation(
        "lm/export/gguf.py",
        '[_words_with(r"\\p{N}"), BYTES]',
        '[_words_with(r"\\p{N}{1,3}"), BYTES]',
        "tests/lm/export/test_gguf.py",
    ),
    "a tokenizer that normalizes text is taken for one that does not": Mutation(
        "lm/export/gguf.py",
        'and tokenizer.get("normalizer") in NORMALIZERS.get(name, (None,))',
        "",
        "tests/lm/export/test_gguf.py",
    ),
    "heads are measured on text that is only watched": Mutation(
        "lm/evaluate.py", "observe, observed=trained", "observe", "tests/lm/test_evaluate.py"
    ),
    "rotations are scaled at the wrong end": Mutation(
        "lm/model.py",
        "frequencies * (unchanged + (1 - unchanged) / scaling.factor)",
        "frequencies * (1 - unchanged + unchanged / scaling.factor)",
        "tests/lm/test_start_point.py",
    ),
    "a GGUF file forgets scaled rotations": Mutation(
        "lm/export/gguf.py", "(plain / scaled).numpy()", "(plain / plain).numpy()", "tests/lm/export/test_gguf.py"
    ),
    "what is drafted is taken from the first tokens": Mutation(
        "lm/inference/sampling.py",
        "p_V.index_add(0, tokens_N, q_N, alpha=-1)",
        "p_V.index_add(0, torch.arange(len(q_N)), q_N, alpha=-1)",
        GENERATE,
    ),
    "letters never follow the end of a contraction": Mutation(
        "lm/inference/canonical.py", "in CONTRACTION_ENDS", "in ()", "tests/lm/inference/test_canonical.py"
    ),
    "an equal merge across the boundary comes first": Mutation(
        "lm/inference/canonical.py",
        "if birth < rank < death",
        "if birth < rank <= death",
        "tests/lm/inference/test_canonical.py",
    ),
    "a word of the prompt cannot be ended": Mutation(
        "lm/inference/generate.py",
        "if neighbours and len(text.tokens) > len(prompt_tokens):",
        "if neighbours:",
        "tests/lm/inference/test_canonical.py",
    ),
    "recall is judged on the documents that it was fitted on": Mutation(
        "lm/inference/memory.py",
        "zip(*judged_by, strict=True)",
        "zip(*fitted_on, strict=True)",
        "tests/lm/inference/test_memory.py",
    ),
    "what recall adds is not taken from anything": Mutation(
        "lm/inference/memory.py",
        "mixed_V = own * p_V",
        "mixed_V = p_V.clone()",
        "tests/lm/inference/test_memory.py",
    ),
    "recall is fitted on the held-out text of another run": Mutation(
        "lm/inference/load.py",
        "if not held_out or held_out.digest() !=",
        "if not held_out or not",
        "tests/lm/inference/test_load.py",
    ),
    "a generated text recalls itself": Mutation(
        "lm/inference/memory.py",
        "match = self._prompt.longest(tokens)",
        "match = Earlier(tokens).longest(tokens)",
        "tests/lm/inference/test_memory.py",
    ),
    "the newest text is the oldest": Mutation(
        "lm/inference/load.py",
        "journal.rows(first, end - first)",
        "journal.rows(0, end - first)",
        "tests/lm/inference/test_load.py",
    ),
    "a line is typed unseen": Mutation(
        "lm/runtime/terminal.py", "shows_keys[3] |= termios.ECHO", "pass", "tests/lm/runtime/test_terminal.py"
    ),
    "a long conversation is shown whole": Mutation(
        "lm/inference/conversation.py",
        "while hidden < most and len(tokens) > slid(self.window):",
        "while False:",
        "tests/lm/inference/test_conversation.py",
    ),
    "what a template refuses stays in the conversation": Mutation(
        "lm/inference/conversation.py",
        "        tokens = self._tokens(turns[2 * hidden :])\n        while hidden and",
        "        self.turns = turns\n        tokens = self._tokens(turns[2 * hidden :])\n        while hidden and",
        "tests/lm/inference/test_conversation.py",
    ),
    "another answer follows the first": Mutation(
        "lm/inference/conversation.py",
        "self._without_last() if again else self.turns",
        "self.turns",
        "tests/lm/inference/test_conversation.py",
    ),
    "a signal from elsewhere is a verdict on the input": Mutation(
        "data/limited_process.py", "ATTEMPTS = 3", "ATTEMPTS = 1", "tests/data/test_limited_process.py"
    ),
    "a space is put before words behind special tokens": Mutation(
        "data/chat_template.py",
        "within_text(tokenizer)",
        "tokenizer",
        "tests/data/test_chat_template.py",
    ),
    "what is watched is learnt": Mutation(
        "configs/mixture.py", "[: len(self.trained_sources)]", "", "tests/configs/test_schema.py"
    ),
    "a stream is taken with another tokenizer": Mutation(
        "lm/train/setup.py",
        "if run.preset.data.tokenizer:  #",
        "if False:  #",
        "tests/lm/train/test_lost_files.py",
    ),
    "an answer does not stop at the end of its turn": Mutation(
        "lm/cli/use.py", "*(template.end_tokens if template else ())", "", "tests/test_chat_use.py"
    ),
    "an exported conversation does not begin as a document": Mutation(
        "lm/export/huggingface.py", '"{{ bos_token }}" + begin_line', "begin_line", CHAT_EXPORT
    ),
    "an exported model does not end its turn": Mutation(
        "lm/export/huggingface.py", "*(chat_template.end_tokens if chat_template else ()), ", "", CHAT_EXPORT
    ),
    "what is said becomes a marker": Mutation(
        "data/tokenizer.py", "    tokenizer.encode_special_tokens = True\n", "", TEMPLATE
    ),
    "the loss counts what the user says": Mutation(
        "data/chat_template.py", 'in_answer = roles[number] == "assistant"', "in_answer = True", TEMPLATE
    ),
    "the end of an answer is not learnt": Mutation(
        "data/chat_template.py",
        "runs.append(_Special(self._specials[match[match.lastindex or 0]], in_answer))",
        "runs.append(_Special(self._specials[match[match.lastindex or 0]], False))",
        TEMPLATE,
    ),
    "spaces within an answer are not learnt": Mutation(
        "data/chat_template.py", "before[min(start, end)]", "before[start]", TEMPLATE
    ),
    "a chat template may lose a text": Mutation(
        "data/chat_template.py", "            if times[number] != 1:", "            if False:", HOSTILE_TEMPLATE
    ),
    "a step learns what the user says": Mutation(
        "lm/train_step.py", "return seen if loss_mask is None else seen & loss_mask[rows, 1:]", "return seen", STEP
    ),
    "the loss shown is of all tokens": Mutation(
        "lm/train_step.py", "num_targets = int(targets_of(plan, tokens.shape[1] - 1, loss_mask).sum())", "pass", STEP
    ),
    "a line weighs its steps by all they read": Mutation(
        "lm/report/metrics.py",
        "self._nats += result.loss * num_targets",
        "self._nats += result.loss * num_tokens",
        "tests/lm/report/test_metrics.py",
    ),
    "losses that are not known count as 0": Mutation(
        "aux_heads/value.py",
        "x.end_of_text, mean, x.valid_BT)",
        "x.end_of_text, mean)",
        "tests/aux_heads/test_heads.py",
    ),
    "what is learnt is no part of the digest": Mutation(
        "data/packing.py",
        "        if loss_mask is not None:\n            seen +=",
        "        if False:\n            seen +=",
        TALKS,
    ),
    "a template that was changed is kept": Mutation(
        "data/prepare.py", "(TEMPLATE_FILE, template_there),", '(TEMPLATE_FILE, ""),', TALKS
    ),
    "another run's template is kept": Mutation(
        "data/stream_files.py", "template_path(stream_dir).unlink(missing_ok=True)", "pass", TALKS
    ),
    "held-out questions are scored": Mutation(
        "data/heldout.py", "counts += [True, *loss_mask]", "counts += [True] * (len(ids) + 1)", TALKS
    ),
    "a conversation like a held-out one is trained on": Mutation(
        "data/sources/conversations.py", "    cells_of = cells_of or (", "    cells_of = () and (", TALKS
    ),
    "turns that the template refuses are trained on": Mutation(
        "data/heldout_choice.py", "if is_refused(document, template) else None", "if False else None", TALKS
    ),
    "a model's template is looked for where the model was": Mutation(
        "data/prepare.py",
        "source = template or template_beside(",
        "source = template_beside(",
        "tests/test_chat_run.py",
    ),
    "turns behind the last answer are kept": Mutation(
        "data/sources/conversations.py",
        'while turns and turns[-1].role != "assistant":',
        "while False:",
        "tests/data/sources/test_conversations.py",
    ),
    "pieces lose their system prompt": Mutation(
        "data/sources/conversations.py",
        'system = tuple(turns[:1]) if turns[0].role == "system" else ()',
        "system = ()",
        "tests/data/sources/test_conversations.py",
    ),
    "a file that is no Parquet is read to its end before the next": Mutation(
        "data/sources/hub.py", "if number >= (turn + 1) * TURN:", "if False:", "tests/data/sources/test_layouts.py"
    ),
    "rows of weights that a crash undid are kept": Mutation(
        "data/producer.py", "if weights != self.weights_after(row):", "if False:", "tests/data/test_stream.py"
    ),
    "a new run takes rows of text that was changed since": Mutation(
        "data/prepare.py",
        "if not is_resumed and not _is_of(header, preset, sources):",
        "if False:",
        "tests/data/test_stream.py",
    ),
    "answers of a benchmark that fails are thrown away": Mutation(
        "lm/evaluation/benchmarks.py",
        "for name in _recorded(folder, state):",
        "for name in loaded.keys() | _recorded(folder, state):",
        "tests/lm/evaluation/test_benchmarks.py",
    ),
    "a stream that is ahead is written in a part for each step": Mutation(
        "data/producer_channel.py",
        "self.limit - num_rows >= room",
        "self.limit > num_rows",
        "tests/data/test_stream.py",
    ),
    "a GPU of Apple's gets its rows in the CPU's memory": Mutation(
        "lm/train_step.py", "else tensor.to(device)", "else tensor", "tests/lm/test_train_step.py"
    ),
    "documents that are limited differ in each epoch": Mutation(
        "data/feed.py",
        "wait, order = FIRST_WAIT, 0 if self.max_documents else epoch",
        "wait, order = FIRST_WAIT, epoch",
        "tests/data/test_feed.py",
    ),
    "a batch of watched rows alone is scored": Mutation(
        "lm/train/held_out.py", "if not has_text_BT.any():", "if False:", "tests/lm/train/test_held_out.py"
    ),
    "what ends an answer may be forbidden": Mutation(
        "lm/inference/sampling.py", " if token not in self.allowed]", "]", "tests/lm/inference/test_sampling.py"
    ),
    "what is rare in one source is lost to those that have it often": Mutation(
        "data/heldout_selection.py",
        "shared = shared.difference(*(found.ordinary for found in found_in_each))",
        "pass",
        "tests/data/test_heldout.py",
    ),
    "lines that a source has often are held out": Mutation(
        "data/heldout_selection.py", "shortest, repeated=False)", "shortest)", "tests/data/test_heldout.py"
    ),
    "a finish written ahead stays in a longer run": Mutation(
        "data/producer.py",
        'return first >= self.finish if state["finishing"] else end <= self.finish',
        'return end <= self.finish or state["finishing"]',
        "tests/data/test_finish.py",
    ),
    "a PDF that was changed is read": Mutation(
        "data/sources/pdf.py",
        "if status != os.EX_NOINPUT and self._has_changed():",
        "if False:",
        "tests/data/sources/test_pdf.py",
    ),
    "a chat template from elsewhere has no limits": Mutation(
        "data/chat_template.py", "render if source in (OWN, CHATML) else render_with_limits", "render", HOSTILE_TEMPLATE
    ),
    "a start point may hold NaN": Mutation(
        "lm/start_point.py", "if not tensor.isfinite().all():", "if False:", "tests/lm/test_start_point.py"
    ),
    "a shard may be anywhere": Mutation(
        "lm/start_point.py", """not {"/", "\\\\", "\\0"} & set(value)""", "True", "tests/lm/test_start_point.py"
    ),
    "a file of the Hub's cache is taken as it is": Mutation(
        "data/sources/hub_model.py", "if not whole:", "if False:", "tests/data/sources/test_hub_model.py"
    ),
    "keys of a group come in another order": Mutation(
        "lm/model.py",
        "x.repeat_interleave(H // k.shape[1], dim=1)",
        "x.repeat(1, H // k.shape[1], 1, 1)",
        "tests/lm/test_model.py",
    ),
    "a continued run is not evaluated first": Mutation(
        "lm/train/state.py", "last = -1 if continued else 0", "last = 0", "tests/lm/train/test_continued.py"
    ),
    "a resumed run begins with another scale of its loss": Mutation(
        "lm/learner.py", '**({"loss_scale": scale.state} if scale else {}),', "", "tests/lm/test_loss_scale.py"
    ),
    "a broken upload goes on where it broke": Mutation(
        "data/sources/hub_client.py", 'request.method == "PUT" or (', "False and (", "tests/lm/export/test_upload.py"
    ),
    "further tokens never fade": Mutation(
        "lm/train_step.py", "*plan.multi_token_weights)", "*(1.0 for _ in plan.multi_token_weights))", STEP
    ),
    "no run lets further tokens fade": Mutation(
        "lm/schedule.py", "weight * fade_out(progress)", "weight * fade_out(0.0)", "tests/lm/test_schedule.py"
    ),
    "the policy teaches the transition as much as dynamics": Mutation(
        "aux_heads/policy.py", "GRADIENT_SCALE = 0.1", "GRADIENT_SCALE = 1.0", "tests/aux_heads/test_heads.py"
    ),
    "a row's last tokens look into the next": Mutation(
        "lm/loss.py", "value=IGNORE", "value=0", "tests/lm/test_loss.py"
    ),
    "one token twice in a row counts once": Mutation(
        "lm/loss.py",
        "(same_NKK * scales_NK.unsqueeze(1)).sum(2)",
        "scales_NK",
        "tests/lm/test_loss.py",
    ),
    "attention's scores are kept for the backward pass": Mutation(
        "aux_heads/joint.py",
        "CPU_ACTIVATION_BUDGET = 0.8",
        "CPU_ACTIVATION_BUDGET = 1.0",
        "tests/aux_heads/test_joint.py",
    ),
    "a page that is no text is trained on": Mutation(
        "data/sources/pdf_worker.py", " or looks_wrong(text)", "", "tests/data/sources/test_pdf_texts.py"
    ),
    "a PDF whose reader others end is damaged": Mutation(
        "data/sources/pdf.py",
        "if self._cancelled or status not in (*OF_OTHERS, os.EX_TEMPFAIL):",
        "if True:",
        "tests/data/sources/test_pdf.py",
    ),
    "letters of an Arabic ligature come backwards": Mutation(
        "data/sources/pdf_directions.py",
        "letters = letters[::-1]",
        "pass",
        "tests/data/sources/test_pdf_texts.py",
    ),
    "a turned page is read as it lies": Mutation(
        "data/sources/pdf_pdfium.py", "-angle % 360)", "0)", "tests/data/sources/test_pdf_texts.py"
    ),
    "no fsync": Mutation("lm/checkpoint/file.py", "        os.fsync(file.fileno())\n", "", CHECKPOINT),
    "names swapped": Mutation(
        "lm/checkpoint/store.py",
        "return [(previous, previous_2), (current, previous)] if older",
        "return [(current, previous), (previous, previous_2)] if older",
        CHECKPOINT,
    ),
    "a moment without a checkpoint": Mutation(
        "lm/checkpoint/store.py",
        "        os.replace(temporary, folder / CURRENT)",
        "        (folder / CURRENT).unlink(missing_ok=True)\n        os.replace(temporary, folder / CURRENT)",
        CHECKPOINT,
    ),
    "the digest is not looked at": Mutation(
        "lm/checkpoint/file.py",
        "if not is_whole(path):\n                raise Damaged",
        "if False:\n                raise Damaged",
        CHECKPOINT,
    ),
    "a folder is believed to be a move because of its name": Mutation(
        "lm/checkpoint/archive.py",
        "if entry.suffix != LINKING and not all(",
        "if entry.suffix != LINKING and all(",
        "tests/lm/checkpoint/test_archive.py",
    ),
    "a copy is removed that is the only one": Mutation(
        "lm/checkpoint/archive.py",
        "or _is_in(path, original / path.name)",
        "or True",
        "tests/lm/checkpoint/test_archive.py",
    ),
    "a tensor may be larger than its bytes": Mutation(
        "lm/checkpoint/reader.py",
        "if self.num_bytes > 2 * size:",
        "if False:",
        "tests/lm/checkpoint/test_hostile.py",
    ),
    "a pickle may hold whatever pickles can": Mutation(
        "lm/checkpoint/reader.py", "opcode.name not in OPCODES or", "", "tests/lm/checkpoint/test_hostile.py"
    ),
    "the token follows a link to another host": Mutation(
        "data/sources/hub_client.py",
        "if origin(str(request.url)) != origin(constants.ENDPOINT):",
        "if False:",
        "tests/test_secrets.py",
    ),
    "links that leave a folder are followed": Mutation(
        "data/sources/text.py",
        "if self._inside and path.is_symlink()",
        "if False",
        "tests/data/sources/test_sources.py",
    ),
    "weights that are not numbers are saved": Mutation(
        "lm/checkpoint/file.py", "if where := _not_finite(self._contents):", "if where := None:", CHECKPOINT
    ),
    "a snapshot that training changes": Mutation(
        "lm/checkpoint/file.py",
        "copy.copy_(value.detach(), non_blocking=on_gpu)",
        "value.detach()",
        "tests/lm/checkpoint/test_saver.py",
    ),
    "failed saves are not counted": Mutation(
        "lm/checkpoint/saver.py",
        "            self._failures.append(error.with_traceback(None))",
        "            pass",
        "tests/test_saving.py tests/lm/train/test_trainer.py",
    ),
    "the logs are not on the disk before a checkpoint": Mutation(
        "lm/checkpoint/saver.py",
        "            self._sync_logs()\n",
        "",
        "tests/lm/checkpoint/test_saver.py",
    ),
    "half a step is saved": Mutation(
        "lm/train_step.py", "self.is_updating = True", "pass", "tests/lm/train/test_ended_runs.py"
    ),
    "an error ends a run unsaved": Mutation(
        "main.py", "trainer.save_at_once()", "pass", "tests/lm/train/test_ended_runs.py"
    ),
    "a large loss is not said": Mutation(
        "data/feed.py", "num_lost - held_out_as_meant <= LARGE_LOSS * seen", "True", "tests/data/test_feed.py"
    ),
    "samples hold tokens that no text has in a row": Mutation(
        "lm/train/events.py", "            neighbours=trainer.neighbours,\n", "", "tests/lm/train/test_events.py"
    ),
    "canonical tokens save the share of the others": Mutation(
        "lm/train/held_out.py",
        "torch.log1p(-lost_N.cpu().double())",
        "-lost_N.cpu().double()",
        "tests/lm/train/test_held_out.py",
    ),
    "a folder that is removed after a save gets nothing": Mutation(
        "lm/train/trainer.py", " and not self._lock.is_lost", "", "tests/lm/train/test_ended_runs.py"
    ),
    "a dataset on this disk may change": Mutation(
        "data/sources/hub.py",
        "elif pinned and pinned.get(",
        "elif False and pinned.get(",
        "tests/data/sources/test_hub.py",
    ),
    "the only text that can be used is held out as a whole": Mutation(
        "data/heldout_selection.py",
        "if num_usable == HELD_OUT_ONE_IN:",
        "if num_usable + reasons.total() >= HELD_OUT_ONE_IN:",
        "tests/data/test_heldout.py",
    ),
    "a run is saved over another": Mutation(
        "lm/train/trainer.py",
        "if store.latest_exists(self.folder) and",
        "if False and",
        "tests/lm/train/test_ended_runs.py",
    ),
    "a closed terminal goes unheard": Mutation(
        "lm/runtime/signals.py", '"SIGHUP", "SIGQUIT")', '"SIGQUIT")', "tests/test_lost_terminal.py"
    ),
    "two runs in one folder": Mutation(
        "lm/runtime/files.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", CHECKPOINT
    ),
    "the loss divided by micro-batches": Mutation(
        "lm/train_step.py",
        "numbers(self.world.size / plan.num_tokens,",
        "numbers(self.world.size / (plan.num_rows // self.batch_rows * batch.targets_BT.numel()),",
        STEP,
    ),
    "the number of processes forgotten": Mutation(
        "lm/train_step.py",
        "numbers(self.world.size / plan.num_tokens,",
        "numbers(1 / plan.num_tokens,",
        "tests/lm/runtime/test_distributed.py",
    ),
    "a bad gradient is stepped on": Mutation("lm/train_step.py", "elif sound:\n", "else:\n", STEP),
    "a rank steps on what another skips": Mutation(
        "lm/train_step.py",
        "sums = self.world.sum(sums)",
        "sums = sums * 1",
        "tests/lm/test_bad_numbers.py",
    ),
    "a fault of a billion is learnt": Mutation(
        "lm/train_step.py", "DIVERGENCE_LIMIT = 1_000.0", "DIVERGENCE_LIMIT = math.inf", "tests/lm/test_bad_numbers.py"
    ),
    "a rank gives a step up alone": Mutation(
        "lm/train_step.py", "if self.world.any(should_stop()):", "if should_stop():", "tests/lm/test_bad_numbers.py"
    ),
    "a GPU's optimizer steps on what was not sound": Mutation(
        "lm/optim.py",
        "sound = self.found_inf == 0",
        "sound = self.found_inf == self.found_inf",
        "tests/lm/test_optim.py",
    ),
    "a captured step keeps the gradients of the one before": Mutation(
        "lm/captured_step.py", "torch._foreach_zero_(gradients)", "pass", "tests/lm/test_gpu.py"
    ),
    "capturing a step takes steps": Mutation(
        "lm/captured_step.py", "math.nan, dtype=torch.float64", "0.0, dtype=torch.float64", "tests/lm/test_gpu.py"
    ),
    "a save right after a skip": Mutation(
        "lm/train/events.py", "if trainer.is_sound:", "if True:", "tests/test_skipped_steps.py"
    ),
    "skipped steps are not counted": Mutation(
        "lm/train/trainer.py",
        "self.state.skipped_steps += self.result.skipped",
        "self.state.skipped_steps += 0",
        "tests/test_skipped_steps.py",
    ),
    "a step is skipped for ever": Mutation(
        "lm/train_step.py",
        "if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:",
        "if self.skipped_in_a_row == 10**9:",
        "tests/test_skipped_steps.py",
    ),
    "a move of the mixture written twice": Mutation(
        "lm/train/records.py", 'state.adapted if "adapted" in line else ', "", "tests/lm/train/test_trainer.py"
    ),
    "a silent rank is waited for": Mutation(
        "lm/runtime/watch.py",
        "            except RuntimeError as error:\n",
        "            except KeyError as error:\n",
        "tests/test_torchrun.py",
    ),
    "a rank waits for a silent one unsaved": Mutation(
        "lm/runtime/watch.py",
        "            close_connections()\n",
        "",
        "tests/test_torchrun.py::test_a_stalled_rank_ends_the_job_and_a_waiting_one_does_not",
    ),
    "the final evaluation written twice": Mutation(
        "lm/train/records.py",
        "min(state.evaluated, state.tokens_seen - state.is_trained(self._token_budget))",
        "state.tokens_seen",
        "tests/test_program.py",
    ),
    "what ends a run written twice": Mutation(
        "lm/train/records.py", " - state.is_trained(self._token_budget)", "", "tests/test_best_checkpoint.py"
    ),
    "the last evaluation is always the best": Mutation(
        "lm/train/best.py",
        "loss < best_loss(trainer.folder, trainer.state.run_id)",
        "True",
        "tests/test_best_checkpoint.py",
    ),
    "the best checkpoint of another run counts": Mutation(
        "lm/checkpoint/store.py", 'state.get("run_id", "") != run_id', "False", CHECKPOINT
    ),
    "the best checkpoint is no file of the run": Mutation(
        "lm/checkpoint/archive.py", '"lm_best.pth*", ', "", "tests/lm/checkpoint/test_archive.py"
    ),
    "a best checkpoint is better by any difference": Mutation(
        "lm/train/best.py", '"exported": gained > stderr', '"exported": gained > 0', "tests/test_best_checkpoint.py"
    ),
    "evaluations come at the interval alone": Mutation(
        "lm/schedule.py", "for halved in range(1, halvings + 1)", "for halved in range(0)", "tests/lm/test_schedule.py"
    ),
    "the error of an improvement is that of the losses": Mutation(
        "lm/evaluate.py", "nats = (losses - better) *", "nats = losses *", "tests/lm/test_evaluate.py"
    ),
    "threads wait awake beside other programs": Mutation(
        "lm/runtime/openmp.py", "> BUSY_CORES", "> 99", "tests/lm/runtime/test_openmp.py"
    ),
    "a guess grows without end": Mutation(
        "lm/runtime/estimate.py", "max(SLOWEST_PACE, ", "max(0.0, ", "tests/lm/runtime/test_estimate.py"
    ),
    "a compiler that fails on the model ends the run": Mutation(
        "lm/train/dry_run.py",
        "learner.stop_compiling(words_of_compiler(error))",
        "raise",
        "tests/lm/runtime/test_machine.py",
    ),
    "random positions without the row": Mutation(
        "lm/train_step.py", "self.seed * 1_000_003 + batch.first_row", "self.seed * 1_000_003 + id(batch) % 97", STEP
    ),
    "one step too many": Mutation(
        "lm/schedule.py",
        "min(rows_per_step * seq_length, token_budget - tokens_seen)",
        "rows_per_step * seq_length",
        STEP,
    ),
    "moments are not restored": Mutation(
        "lm/learner.py", '{"state": saved["state"], ', '{"state": {}, ', "tests/test_kills.py"
    ),
    "weights under the names that DDP gives": Mutation(
        "lm/learner.py",
        '"model": self.trunk.state_dict()',
        '"model": self.train_step.model.state_dict()',
        "tests/test_resume.py",
    ),
    "new weights hold from now on": Mutation(
        "lm/train/adaptation.py", " + run_ahead_rows(", " + 0 * run_ahead_rows(", "tests/test_kills.py"
    ),
    "lines that were not learnt stay": Mutation(
        "lm/report/metrics.py", " if record and is_kept(record)]", " if record]", "tests/test_kills.py"
    ),
    "rows in the journal's order": Mutation(
        "data/order.py", 'return np.argsort(bits, kind="stable")', "return np.arange(length)", STREAM
    ),
    "every run in the order of one seed": Mutation(
        "data/order.py", "SeedSequence((seed, start))", "SeedSequence((0, start))", "tests/data/test_order.py"
    ),
    "a window is not cut where the sources end": Mutation(
        "data/order.py", "min(end, first + count), min(end, num_rows)", "min(end, first + count), end", STREAM
    ),
    "a window crosses the beginning of the finish": Mutation(
        "data/order.py", "edges.append(min(end, ", "edges.append(min(num_rows, ", FINISH
    ),
    "a document reaches into the finish": Mutation(
        "data/packing.py", "parts[:] = [self._held(field)[:kept]]", "parts[:] = [self._held(field)]", FINISH
    ),
    "a finish that was killed begins again": Mutation(
        "data/producer.py", 'state.get("finishing", False)', "False", FINISH
    ),
    "what is watched is trained on": Mutation(
        "data/mixing.py", "[weight > 0 for weight in weights]", "[True for weight in weights]", FINISH
    ),
    "what is watched takes held-out rows from the rest": Mutation(
        "data/heldout.py",
        "num_tokens / max(1, there[source.label in watched])",
        "num_tokens / max(1, self.num_tokens)",
        "tests/data/test_heldout.py",
    ),
    "windows overlap by half": Mutation(
        "data/heldout.py", "quarter = length // 4", "quarter = length // 2", "tests/data/test_heldout.py"
    ),
    "windows begun are forgotten": Mutation(
        "data/order.py", "edges = list(begun)", "edges = [0]", "tests/data/test_order.py"
    ),
    "shares of documents": Mutation(
        "data/mixing.py",
        'cost = num_tokens if self.strategy == "weighted" else 1',
        "cost = 1",
        "tests/data/test_mixing.py",
    ),
    "held-out text is trained on": Mutation(
        "data/heldout_choice.py", "if text_hash(document.text) in held_out:", "if False:", STREAM
    ),
    "text becomes a special token": Mutation(
        "data/tokenizer.py", "tokenizer.encode_special_tokens = True", "pass", "tests/data/test_tokenizer.py"
    ),
    "an encoding is guessed": Mutation(
        "data/sources/encoding.py", "MARGIN = 12.0", "MARGIN = -1e9", "tests/data/sources/test_encoding.py"
    ),
    "text of no language is taken": Mutation(
        "data/sources/encoding.py",
        "LARGEST_EXCESS = 1.0",
        "LARGEST_EXCESS = 99.0",
        "tests/data/sources/test_encoding.py",
    ),
    "a held-out answer is trained on": Mutation(
        "data/heldout_choice.py", "            shared |= telling", "            pass", "tests/data/test_heldout.py"
    ),
    "a paragraph with many questions is trained on": Mutation(
        "data/heldout_choice.py", "shared |= passages", "pass", "tests/data/test_heldout.py"
    ),
    "a category is held out": Mutation(
        "data/heldout_choice.py",
        "LARGEST_LOSS = 10, 0.05, 0.5",
        "LARGEST_LOSS = 10, 1.0, 1.0",
        "tests/data/test_heldout.py",
    ),
    "a copy in another source is kept": Mutation(
        "data/duplicates.py", "before % SOURCES != source or", "", "tests/data/test_duplicates.py"
    ),
    "records of earlier appends are lost": Mutation(
        "data/duplicates.py", "self._given.update(", "self._given = dict(", "tests/data/test_duplicates.py"
    ),
    "rows that skip a token": Mutation(
        "data/packing.py",
        "windows[:: self.seq_length][: len(rows)]",
        "windows[1 :: self.seq_length][: len(rows)]",
        "tests/data/test_packing.py",
    ),
    "a place in a block forgotten": Mutation(
        "data/feed.py", "del waiting[max(0, num_documents - given) :]", "pass", "tests/data/test_feed.py"
    ),
    "a resumed source begins with small blocks": Mutation(
        "data/feed.py", "number = self.progress.blocks", "number = 0", "tests/data/test_feed.py"
    ),
    "hidden files are read": Mutation(
        "data/sources/find.py", 'shown * (part[0] != ".")', "''", "tests/data/sources/test_sources.py"
    ),
    "an export throws away what others have put there": Mutation(
        "lm/export/huggingface.py",
        "        keep_other_files(out_dir, temporary)\n",
        "",
        "tests/lm/export/test_huggingface.py",
    ),
    "conversations have no text for the tokenizer": Mutation(
        "data/block.py",
        "return Document(text, turns=tuple(turns))",
        'return Document("" if turns else text, turns=tuple(turns))',
        "tests/data/test_chat_stream.py",
    ),
    "blocks stay small": Mutation(
        "data/feed.py", "BLOCK_BYTES << min(number, 32)", "BLOCK_BYTES", "tests/data/test_feed.py"
    ),
    "a torn append is kept": Mutation(
        "data/journal.py", "            file.truncate(size)\n", "", "tests/data/test_journal.py"
    ),
    "damaged rows are kept": Mutation(
        "data/journal.py",
        "if entry is None or not self._has_rows(entry):",
        "if entry is None:",
        "tests/data/test_journal.py",
    ),
    "a pipe in the place of a file of the stream is read": Mutation(
        "data/stream_files.py",
        "if new_name := set_aside_unless_file(path, or_link=path.name in (ROWS, STATES)):",
        "if new_name := None:",
        "tests/data/test_stream_kills.py::test_what_is_no_file_is_set_aside_and_made_again_wherever_it_is",
    ),
    "a journal that was replaced is waited for": Mutation(
        "data/journal.py", "not (file and os.path.samestat(file, self._file))", "not file", "tests/data/test_journal.py"
    ),
    "damaged rows are trained on": Mutation(
        "data/journal.py",
        "if crc32(content) != self._appends[number].crc32:",
        "if False:",
        "tests/data/test_journal.py",
    ),
    "an end that is held out is trained on": Mutation(
        "data/feed.py", "document = document._replace(text=document.text[:kept])", "pass", STREAM
    ),
    "a category is judged by the head of the data": Mutation(
        "data/heldout_selection.py", "sample = islice(others, SAMPLE", "sample = islice(head(i), SAMPLE", STREAM
    ),
    "every file's first row is held out": Mutation(
        "data/sources/hub.py",
        'int(hash_key(self.seed, "held out", file, group.number), 16) + part',
        "part",
        HUB,
    ),
    "an edited file is read on": Mutation(
        "data/sources/text.py", "if self._is_changed(digest):", "if False:", "tests/data/sources/test_sources.py"
    ),
    "any text may take the place of a run's": Mutation(
        "data/identity.py", "if path_of(spec) != entry", "if False and path_of(spec) != entry", LOST
    ),
    "text made again from other sources is trained on": Mutation(
        "lm/train/rows.py", "if digest != self._state.text_digest:", "if False:", LOST
    ),
    "whatever the Hub answers is data": Mutation(
        "data/sources/hub_client.py",
        "if not (problem := problem_with(",
        "if True or (problem := problem_with(",
        "tests/data/sources/test_hub_faults.py",
    ),
    "what a dataset loses is counted in every epoch": Mutation(
        "data/sources/hub.py",
        "skipped = self.skipped if epoch == 0 else Counter()",
        "skipped = self.skipped",
        HUB,
    ),
    "the first file's types are those of all": Mutation(
        "data/sources/hub_files.py", "builder.info.features = dataset.info.features = None", "pass", HUB
    ),
    "all columns are read": Mutation("data/sources/parquet.py", "columns=columns", "columns=None", HUB),
    "an empty section keeps its heading": Mutation(
        "data/sources/cells.py", "not cells[name[1:]].strip()", "False", HUB
    ),
    "lists of numbers are text": Mutation(
        "data/sources/cells.py", "return not is_number(kind.value_type) and", "return", HUB
    ),
    "row groups are sorted in every round": Mutation(
        "data/sources/hub_rows.py", "if self._groups.get(file, (None,))[0] != epoch:", "if True:", HUB
    ),
    "a file is skipped for lack of memory": Mutation(
        "data/sources/hub_rows.py", "except (SourceError, MemoryError):", "except SourceError:", LAYOUTS
    ),
    "globs of data files have no bound": Mutation(
        "data/sources/hub_client.py", "    bound_local_globs()\n", "", LAYOUTS
    ),
    "a ragged line of CSV is cut": Mutation(
        "data/sources/csv_files.py", "if len(line) <= len(names) else None", "or None", LAYOUTS
    ),
    "a slice has the whole row groups": Mutation(
        "data/sources/hub_files.py", "found.append(Group(group, start, stop))", "found.append(Group(group))", LAYOUTS
    ),
    "all files are counted for a slice": Mutation(
        "data/sources/hub_files.py", "sum(counts) >= (part.stop or 0)", "False", LAYOUTS
    ),
    "zstd ends with its first frame": Mutation(
        "data/sources/compressed.py",
        "                self._frame = None\n",
        "                self._file.seek(0, 2)\n",
        LAYOUTS,
    ),
    "a file cut off is taken for a whole one": Mutation(
        "data/sources/compressed.py", "if self._frame is not None:\n", "if False:\n", LAYOUTS
    ),
    "the other files are not asked for text": Mutation(
        "data/sources/hub.py", "for other in self._others(file):", "for other in ():", LAYOUTS
    ),
    "a file that fails late is not named": Mutation(
        "data/sources/hub_rows.py",
        'skipped["unreadable file"] += 1\n                    self._name_unreadable(file, error)',
        'skipped["unreadable file"] += 1',
        LAYOUTS,
    ),
    "repeats are not blocked": Mutation(
        "lm/inference/generate.py",
        "            text.append(new[-1])\n",
        "            text.tokens.append(new[-1])\n",
        GENERATE,
    ),
    "a nucleus without its last token": Mutation(
        "lm/inference/sampling.py",
        "probabilities_V >= last",
        "probabilities_V > last",
        "tests/lm/inference/test_sampling.py",
    ),
    "every draft is kept": Mutation(
        "lm/inference/sampling.py", "* q_N[choice] < p_V[token]", "* 0 < p_V[token]", GENERATE
    ),
    "a draft is replaced by any token": Mutation(
        "lm/inference/sampling.py", "p_V.index_add(0, tokens_N, q_N, alpha=-1)", "p_V.clone()", GENERATE
    ),
    "drafts see the trunk's mask one position late": Mutation(
        "lm/inference/decoder.py",
        "triu_(self.length + 1)",
        "triu_(self.length + 2)",
        "tests/lm/inference/test_decoder.py " + GENERATE,
    ),
    "eight bits for every width": Mutation(
        "aux_heads/drafter.py", "num_inputs % WHOLE_INPUTS or ", "", "tests/aux_heads/test_drafter.py"
    ),
    "value is asked once": Mutation(
        "aux_heads/drafter.py", "ASKED_EVERY = 16", "ASKED_EVERY = 10**9", "tests/aux_heads/test_drafter.py"
    ),
    "nothing is given back": Mutation(
        "data/memory.py", "ctypes.CDLL(None).malloc_trim(0)", "pass", "tests/lm/runtime/test_machine.py"
    ),
    "drafts are not forgotten": Mutation(
        "lm/inference/generate.py", "decoder.rollback(decoder.length - len(drafts) + num_kept)", "pass", GENERATE
    ),
    "the export's texts begin in the middle of a document": Mutation(
        "lm/export/huggingface.py",
        "    tokenizer.post_processor = begins_document(end_of_text, tokenizer_id)\n",
        "",
        "tests/lm/export/test_huggingface.py",
    ),
    "the menu never looks again": Mutation(
        "lm/cli/menu.py", "        menu = looked_again()\n        try:", "        try:", "tests/lm/cli/test_menu.py"
    ),
    "a signal leaves the terminal without echo": Mutation(
        "lm/runtime/signals.py", "        restore_terminal()\n", "", "tests/lm/runtime/test_terminal.py"
    ),
    "a word counts again with each of its tokens": Mutation(
        "data/words.py",
        "self._begins[tokens] & self._ends[before]",
        "self._begins[tokens]",
        "tests/data/test_packing.py",
    ),
    "a resume cuts lines elsewhere": Mutation(
        "data/sources/hub_rows.py", "else start * size)", "else start * size + 1)", HUB
    ),
    "a resumed run keeps no milestone since its checkpoint": Mutation(
        "lm/train/state.py",
        'tuple(happened.get("kept_at", (checkpoint["tokens_seen"], 0)))',
        '(checkpoint["tokens_seen"], position["words_seen"])',
        "tests/lm/train/test_milestones.py",
    ),
    "an ending sees the others of its beginning": Mutation(
        "lm/evaluation/scorer.py", " & (node_W[:, None] < ends_BW[:, None])", "", "tests/lm/evaluation/test_scorer.py"
    ),
    "drafts stay in the text": Mutation("lm/inference/generate.py", "        text.rollback(length)\n", "", GENERATE),
}


def survives(mutation: Mutation) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "checkpoints", "__pycache__"))
        path = copy / mutation.path
        text = path.read_text()
        assert text.count(mutation.old) == 1, f"{mutation.path} has {text.count(mutation.old)} times {mutation.old!r}"
        path.write_text(text.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-p", "no:cacheprovider", *mutation.tests.split()]
        try:
            result = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return False
        if result.returncode not in (0, 1, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT):  # no test was run
            raise RuntimeError(result.stdout)
        return result.returncode == 0


def main(names: list[str]) -> int:
    survivors = []
    for number, name in enumerate(names, start=1):
        survivors += [name] if survives(MUTATIONS[name]) else []
        print(f"{number:>3} {'SURVIVED' if name in survivors[-1:] else 'caught  '} {name}", flush=True)
    share = 1 - len(survivors) / len(names)
    print(f"{len(names)} defects, {share:.0%} caught; survivors: {', '.join(survivors) or 'none'}")
    return int(share < 0.95)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(MUTATIONS)))
