"""How frequent letters are in the languages that older encodings were made for (encoding.py).

Part k of an entry, counted from 0, holds the letters whose share of a text is about 2^-(3 + k/2);
languages that are not written in Latin letters have those of their script only. The shares are
those of the translations of Django, Wagtail and Oscar (`python -m benchmarks.encodings letters FOLDER` prints
them); letters of an alphabet that do not occur there were added by hand.
"""

LETTERS = {
    "en": "|e|taso|irn|ludh|c|mbgp|fwy|v|T|k|EY|DPMISqj|xF|ANCRHU|L|zB|VG|WOZéèêëáàâäåæçíìîïñóòôöøúùûüß||||ÉÈÊËÁÀÂÄÅÆÇÍÎÑÓÔÖÜ",
    "ru": "|ое|атин|р|свл|дкпумы|ьзб|яйч|жц|гю|хВэш|щП|фС|УНД|ОЭЗ|ИРКёъ|Т|М|ЕА|ФЛЧ|ГБ|ЦХ|||ЯЖЙШЩЪЫЬЮЁ",
    "uk": "|о|ан|еитів|ркудсл|мп|зяб|ь|йжчцг|Вшєю|щхї|П|фНЗ|СД|ЦБО|КРМ|УТ|ЧА|Яґ|ІГ|ФЖЩ||ШХҐ|ЕЛ|ИЙЬЮЄЇ",
    "bg": "|ае|тио|нр|свлд|пз|кмъ|бя|чу|гйжц|шщВ|Мф|ПС|НИТхУ|ДГ|ЗАБ|юОЧ||КРЕь|Ф|||Ь||ЖЙЛХЦШЩЪЮЯ",
    "sr": "||||аеи|о|нтрс|двкм|лјуп|зб||шцг|жњч|љћфОМ|хУПД|В|НИГђ|АС|ЧЛџ|ЗФ|ТБК|Х|Џ||ЕЖРЦШЂЈЉЊЋ",
    "mk": "|аеи|от|нр|сдк|влмп|зјб|уг|шц|ч|ВжО|њќф|Н||ПСИ|ДЗБМА|ТЛК|ѓУ|ЈГџѕљ||||ЏЅЉ||ЕЖРФЦЧШЃЊЌ",
    "be": "а||н|е|ыілрктс|цяопдвмь|зубўэ|ч|гш|йю|хж|ВП|КГфУЗА|ДН|Сё|М|Х|ґ|ЧТЦ|ЛЯФ|иБРІЁ||||ЕЖИЙОШЫЬЭЮЎҐ",
    "pl": "|a|oein|tzs|rwydu|pkcj|ml|bł|żgęąć|óhś||PWf|TUN|ńZCSDOM|AK|Lź|Rv|JGBH|IFY|ŻxE||V|q|Ś|ÓĄĆĘŁŃŹ",
    "cs": "||eonta||lusvdrpk|íiámy|zbjh|cžě|řéý|š|čP|ůN|VSZOTfU|gMú|DxH|wRCAKó|BJňŽ|FLď|Eť|I|ČÚq||GWŤ||ÁÉÍÓÝĎĚŇŘŠŮ",
    "sk": "|e|oan|ti|rsvdpuk|lmá|bzyjh|cží|ýéťš|úč|Pľ|VNô|fSZUT|MgOó|xAKDH|Cň|ďRL|YwFI|äBEŕ|ŽĎČJ|ÚGĺ|q|Ŕ||ÁÄÉÍÓÔÝĹĽŇŠŤ",
    "hu": "|e|atl|szno|krámi|égd|vyjh|b|uöfópőí|Ac|ü||EűúKM|BN|HS|V|ÉTJwP|LCURÖFG|ÍIxDOW|ÓZÚ|||ÁY||ÜŐŰ",
    "hr": "|aie|on|rtj|sudvp|klm|z|b|gcš|ž|čćN|PhO|đUVS|M|fDZK|JITLA|BR||CH|ywŽF|EG|xW|Č||ĆĐŠ",
    "sl": "|ea|ion|trs|lvjd|kpmb|zu||gčh||šcP|žN|VSID|TAZO|U|LR|f|wBČŽ|KWMGćđ|FJE|yx||ŠHĆĐ",
    "ro": "|eai|tr|unc|los|dăp|mg|țfv|bz|ș|îA|xS|NPh|Dj|âICF|RVTUk|ELȘM|ţOÎ|w|W|ByG||şJ||ÂĂŞŢȚ",
    "de": "e|n|itr|s|audhl|goc|fbm|kSwz||üBvpDö|AäW|PE|VIKFL|MZUGj|ROTN|y|xHÜ|ß|ÄCJ|Y||Ö|q|Q",
    "fr": "e||strai|onu|ldpc|ém|v||gf|bh|Lqzà|j|CVAxêSè|ywP|MUkRTD|I|EûNÊ|âOF|ëïüœæÿ|JGWH|îô|ÉQK|BçËÏÜŒÆŸ|ù|ZÀÂÇÈÎÔÙÛ",
    "es": "|eao|insr|dtc|ul|p|m|gbv|á|hóf|qEj|yíú|NñSLPz|éAxC|DTRU|I|VMHOk|FY|GBü|w|W||ZJQÜ|Ú|ÁÉÍÑÓ",
    "it": "|ieao|tn|rsl|ucdp|m|g|vz|fb|h|qè|SI|LAN|àPCQw|òTRU|OEMD|GVFùé|kyj|HBî|W|Kx|È|Î|JìZ|ÀÉÌÒÙ",
    "pt": "|eao|sri|dtn|umc|pl|v|gfã|á|hbçq|zx|AEO|jPéíêN|TVCSõúD|URI|ókM|FG|àLw|Bü|HQôy|JWY|K|ÉZâÜ|Ú|ÀÁÂÃÇÊÍÓÔÕ",
    "sv": "|ae|rtni|dls||ogkämu|vfp|öh|bå|cD|j|y|VS|AFL|KEÄxIROT|UPNM|BH|w|GYJé|WC||Å|ZzÉ|q|Ö",
    "da": "e||rtnd|ilas|kgo|uv|mf|bp|æh|D|øåy|jc|IS|EFVT|BKUAwMRP|OLH|G|ÅNC|é|J|x|Z|zq||ÆÉØ",
    "nb": "e||rnti|lsda|kog|um|vp|fb|åh|Dj|øy|S|VE|æL|FMcHAIOPT|BKR|UNYG|w|éòô|JC|||ÉÒÔ||ÅÆØ",
    "nl": "e|n|ait|rod|gls|v|ukpbcwm|jzh||f||D|VW|EAPJ|GSH|yOBUMCK|xéNTLZR|I|èöêá|FëY||qü|ïÈÖÊÁ||ÉËÏÜ",
    "fi": "|tai|esno|läuk||mv|yr|hjp|d|T|ö|SKV|P|MOLH|gAE|cJbU|RN|Yf|Cåšž|WwD|IF|xGÄ|ZqÅŠŽ|B|Ö",
    "is": "||iarent|sðu|l|fkmgv|dí|þyho|áúæ|bjp|Þóö|ESé|ýV|c|HBTAL|NGMF|D|xYI|RwW|P|UÚJO|CÓÖK|||ÁÆÉÍÐÝ",
    "ca": "|ea|sirt|nolu|cd|pm|g|vb|qfàh|ó|xE|SéNA|Ljí|yzPC|DúTçUïR|èHIM|òFO|Váü|Yk|wWGB|J|KQ||ñÉ|ÀÁÇÈÍÏÑÒÓÚÜ",
    "tr": "|iae|nlr||ıdtsukm|y|obüz|şçg|ğpfc|vhöB||S||LKH|ATYD|GEİUPM|jRÜ|NFŞ|OÖVCâîû|Ww|Ç|ZIx|JqÂÎÛ||Ğ",
    "el": "|εα|τ|ιον|σρπμη|ίκλυςδ|γέή|όάθχω|ύ|φ|ώ|ξΕβ|ΠΗΔΤΑ|ζ|ΜΟΣ|ΘΒψ|Κ|ΛΈΥΓ|ϊϋΐΰ|ΌΝ|ΙΞ|Ψ|ΪΫ||ΆΉΊΖΡΦΧΩΎΏ",
    "he": "|וי|הת|לאמר|שב|נםח|קעכדספ|צזט|ןךג||||ף|||ץ",
    "ar": "|ال||ميت|رنة|وحدفع|هبسكص|قأجذإ|خى|طضش|غء|ًثئ|ز|ؤ|ظ||ّآ|ُـ|||ِ",
    "fa": "ا|ی|در|نمهت|وبش|لکس|ف|زحخ|عصقج|گط|پآ|ذ|چغض|ث|ژظ|ئٔ||ً|ؤأ|ء",
    "th": "||า้|่อนรก|มงเีล|ัหดไทค|ยสตวบุขใแ|จูิณปะพถื|ำชผ|์็|โ|ึซฟ|ภญ||ศธ||ฉ||ษ๊ๆฮฬฆฌฑฒฏฎฤฯ",
    "et": "|eai|tslu|od|knm|rv|g|phä|jb|õü|ST|KVP|M|öLfA|O|UcÜ|NREHG|IDš|FJCyž|w||xqZB|WŽ||ÄÕÖŠ",
    "lv": "|ai|ste|r|unomlāk|vpd|jīēzb|šg|cū|||PfJLļ|TņNAD|VMSŠ|hI|ģžRYFw|ķHU|ZK|OyGC|B|x||||ĀĒĢĪĶĻŅŪŽ",
    "lt": "i|a|st|erouk|npl|md|všj|ėbgyų|ąžū|įP|||JčAcN|SzĮfTę|ŠKRD|IhGUV||BEML|w|F|xOC||Žq||ĄČĖĘŪŲ",
}

# The most frequent characters of languages with thousands of them, and syllables of Korean.
FREQUENT = {
    "zh-Hans": (
        "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年"
        "过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心"
        "她本前开但因只从想实"
    ),
    "zh-Hant": (
        "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年"
        "過發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心"
        "她本前開但因只從想實"
    ),
    "ko": (
        "이다는에의을가지고하한로은를서사기도들어나시인자해리있그수대으라아것정일부여주전만보장제오스과구적면게원상"
    ),
}
