//! Certificates for tests (X.509, RFC 5280): a test has its own authority, which issues certificates for any period.

use std::fmt::Write;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::random;
use time::{Duration, OffsetDateTime};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` and `[3]`, constructed.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// ecdsa-with-SHA256
const SIGNATURE_ALGORITHM: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// id-ecPublicKey on prime256v1
const KEY_ALGORITHM: &[u8] =
    b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// A certificate authority.
pub struct Authority {
    name: String,
    key: Key,
    /// Its own certificate, in DER.
    pub certificate: Vec<u8>,
}

/// A certificate in DER and its key in PKCS#8.
pub struct Issued {
    pub certificate: Vec<u8>,
    key: Vec<u8>,
}

struct Key {
    pair: EcdsaKeyPair,
    pkcs8: Vec<u8>,
}

impl Authority {
    /// A root authority, valid for twenty years around `now`.
    pub fn new(name: &str, now: OffsetDateTime) -> Self {
        let key = Key::new();
        let certificate = certificate(&key, name, name, &key, years_around(now), true);
        Self { name: name.to_owned(), key, certificate }
    }

    /// An intermediate authority, trusted by anyone who trusts this one.
    pub fn below(&self, name: &str, now: OffsetDateTime) -> Self {
        let key = Key::new();
        let certificate = certificate(&self.key, &self.name, name, &key, years_around(now), true);
        Self { name: name.to_owned(), key, certificate }
    }

    /// Its key in PEM.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key.pkcs8)
    }

    /// A certificate for `localhost` and 127.0.0.1.
    pub fn issue(&self, not_before: OffsetDateTime, not_after: OffsetDateTime) -> Issued {
        let key = Key::new();
        let certificate =
            certificate(&self.key, &self.name, "localhost", &key, (not_before, not_after), false);
        Issued { certificate, key: key.pkcs8 }
    }

    /// A certificate that is valid for ninety days from the day before `now`.
    pub fn issue_at(&self, now: OffsetDateTime) -> Issued {
        self.issue(now - Duration::DAY, now + Duration::days(89))
    }
}

impl Issued {
    /// The certificate in PEM.
    pub fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// The key in PEM.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }
}

impl Key {
    fn new() -> Self {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
        let pkcs8 = pkcs8.as_ref().to_vec();
        Self { pair: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).unwrap(), pkcs8 }
    }
}

fn years_around(now: OffsetDateTime) -> (OffsetDateTime, OffsetDateTime) {
    (now - Duration::days(3650), now + Duration::days(3650))
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        writeln!(text, "{}", str::from_utf8(line).unwrap()).unwrap();
    }
    writeln!(text, "-----END {label}-----").unwrap();
    text
}

fn certificate(
    signer: &Key,
    issuer: &str,
    subject: &str,
    key: &Key,
    (not_before, not_after): (OffsetDateTime, OffsetDateTime),
    is_authority: bool,
) -> Vec<u8> {
    let algorithm = der(SEQUENCE, &[&der(OID, &[SIGNATURE_ALGORITHM])]);
    let serial = random::bytes::<8>(&mut random::system());
    let public_key =
        der(SEQUENCE, &[KEY_ALGORITHM, &der(BIT_STRING, &[&[0], key.pair.public_key().as_ref()])]);
    // cA TRUE; dNSName, iPAddress
    let extension = if is_authority {
        extension(BASIC_CONSTRAINTS, &[&[0x01, 1, 0xff]])
    } else {
        extension(SUBJECT_ALT_NAME, &[b"\x82\x09localhost", b"\x87\x04\x7f\x00\x00\x01"])
    };
    let body = der(
        SEQUENCE,
        &[
            &der(VERSION, &[&der(INTEGER, &[&[2]])]),
            &der(INTEGER, &[&[1], &serial]),
            &algorithm,
            &name(issuer),
            &der(SEQUENCE, &[&time(not_before), &time(not_after)]),
            &name(subject),
            &public_key,
            &der(EXTENSIONS, &[&der(SEQUENCE, &[&extension])]),
        ],
    );
    let signature = signer.pair.sign(&SystemRandom::new(), &body).unwrap();
    der(SEQUENCE, &[&body, &algorithm, &der(BIT_STRING, &[&[0], signature.as_ref()])])
}

fn extension(id: &[u8], contents: &[&[u8]]) -> Vec<u8> {
    der(SEQUENCE, &[&der(OID, &[id]), &der(OCTET_STRING, &[&der(SEQUENCE, contents)])])
}

fn name(common_name: &str) -> Vec<u8> {
    let attribute = [der(OID, &[COMMON_NAME]), der(UTF8_STRING, &[common_name.as_bytes()])].concat();
    der(SEQUENCE, &[&der(SET, &[&der(SEQUENCE, &[&attribute])])])
}

fn time(at: OffsetDateTime) -> Vec<u8> {
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let text = format!("{year:04}{:02}{day:02}{hour:02}{minute:02}{second:02}Z", u8::from(month));
    der(GENERALIZED_TIME, &[text.as_bytes()])
}

fn der(tag: u8, contents: &[&[u8]]) -> Vec<u8> {
    let contents = contents.concat();
    let length = u16::try_from(contents.len()).unwrap().to_be_bytes();
    let head = match contents.len() {
        0..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [head, contents].concat()
}
