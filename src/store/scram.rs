//! What Postgres stores of a password (SCRAM-SHA-256, RFC 5802 and RFC 7677). It is computed here, so that the password
//! never gets into a log of the server.

use std::num::NonZeroU32;

use aws_lc_rs::{
    digest::{self, SHA256},
    hmac, pbkdf2,
};
use base64::{Engine, engine::general_purpose::STANDARD};

/// The default of Postgres. The passwords are random: nobody guesses one, however fast.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not 0");

/// What to store of `password`, in the format of `pg_authid`. The password has to be ASCII: RFC 7677 would have any
/// other character normalised first.
pub(super) fn verifier(password: &str, salt: [u8; 16]) -> String {
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, password.as_bytes(), &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let stored_key = digest::digest(&SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server_key = hmac::sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256${ITERATIONS}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored_key),
        STANDARD.encode(server_key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_equals_the_one_that_postgres_makes() {
        let made = "SCRAM-SHA-256$4096:vsptR7QZGgo7gBhKV489YA==$4/jjdeEtpAdjnIpb6JfyGdJ1HEheor6DsPv8GtD9d/4=:\
                    pDRrfeZRKBy7ERSzba+Fgtj5TQtMMqVvKwnLQbmThzU=";
        let salt = STANDARD.decode("vsptR7QZGgo7gBhKV489YA==").unwrap();
        assert_eq!(verifier("pencil", salt.try_into().unwrap()), made);
    }
}
