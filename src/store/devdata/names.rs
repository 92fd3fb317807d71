//! The names of made-up people, in several languages and scripts, each also in the letters of a username; and their
//! browsers.

/// The names of one language.
#[derive(Debug)]
pub struct Family {
    /// Given names: as written, and in `a-z`.
    pub given: &'static [(&'static str, &'static str)],
    /// Surnames, in the same way.
    pub surnames: &'static [(&'static str, &'static str)],
    /// Whether the surname comes first.
    pub surname_first: bool,
}

/// All families.
pub const FAMILIES: &[Family] = &[
    Family {
        given: &[
            ("Alice", "alice"),
            ("Oliver", "oliver"),
            ("Grace", "grace"),
            ("Henry", "henry"),
            ("Ruth", "ruth"),
        ],
        surnames: &[("Baker", "baker"), ("O'Neill", "oneill"), ("Smith", "smith"), ("Wright", "wright")],
        surname_first: false,
    },
    Family {
        given: &[("Jürgen", "juergen"), ("Änne", "aenne"), ("Lukas", "lukas"), ("Sophie", "sophie")],
        surnames: &[("Groß", "gross"), ("Müller", "mueller"), ("Schäfer", "schaefer"), ("Vogt", "vogt")],
        surname_first: false,
    },
    Family {
        given: &[("Zoë", "zoe"), ("François", "francois"), ("Anaïs", "anais"), ("Rémi", "remi")],
        surnames: &[("Lefèvre", "lefevre"), ("d'Aubigné", "daubigne"), ("Moreau", "moreau")],
        surname_first: false,
    },
    Family {
        given: &[("Łukasz", "lukasz"), ("Grażyna", "grazyna"), ("Žofie", "zofie"), ("Jiří", "jiri")],
        surnames: &[("Dvořák", "dvorak"), ("Wiśniewski", "wisniewski"), ("Kowalczyk", "kowalczyk")],
        surname_first: false,
    },
    Family {
        given: &[("Анна", "anna"), ("Дмитро", "dmytro"), ("Ольга", "olha"), ("Юрий", "yuri")],
        surnames: &[("Шевченко", "shevchenko"), ("Коваленко", "kovalenko"), ("Мельник", "melnyk")],
        surname_first: false,
    },
    Family {
        given: &[("Ελένη", "eleni"), ("Γιώργος", "giorgos"), ("Νίκος", "nikos")],
        surnames: &[("Παπαδάκης", "papadakis"), ("Νικολάου", "nikolaou"), ("Βλάχος", "vlachos")],
        surname_first: false,
    },
    Family {
        given: &[("ليلى", "layla"), ("يوسف", "yusuf"), ("مريم", "maryam")],
        surnames: &[("الحداد", "alhaddad"), ("منصور", "mansour"), ("النجار", "alnajjar")],
        surname_first: false,
    },
    Family {
        given: &[("अनीता", "anita"), ("राहुल", "rahul"), ("सुनीता", "sunita")],
        surnames: &[("शर्मा", "sharma"), ("गुप्ता", "gupta"), ("वर्मा", "verma")],
        surname_first: false,
    },
    Family {
        given: &[("芳", "fang"), ("伟", "wei"), ("秀英", "xiuying")],
        surnames: &[("王", "wang"), ("李", "li"), ("欧阳", "ouyang")],
        surname_first: true,
    },
    Family {
        given: &[("さくら", "sakura"), ("健太", "kenta"), ("美咲", "misaki")],
        surnames: &[("佐藤", "sato"), ("鈴木", "suzuki"), ("高橋", "takahashi")],
        surname_first: true,
    },
];

/// The `User-Agent` headers of browsers.
pub const AGENTS: &[&str] = &[
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.1 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:146.0) Gecko/20100101 Firefox/146.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.1 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Mobile Safari/537.36",
    "curl/8.14.1",
];
