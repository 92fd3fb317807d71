//! What goes wrong with tokens.

#[cfg(doc)]
use super::MAX_TOKEN_BYTES;
use super::claims::InvalidClaims;

/// Why no token could be made.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IssueError {
    /// There is no key that could make one.
    #[error("no token could be made: there is no key that opens")]
    NoKey,
    /// There is a key, but nobody has said for a while whether it is still good.
    #[error("no token could be made: it is not known at the moment which keys are good")]
    KeysUnknown,
    /// The system had no randomness to give, or the signature failed.
    #[error("no token could be made: no randomness, or no signature")]
    Failed,
}

/// Why a token was refused. For logs and metrics; a client hears only whether it is expired or invalid.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than 8 KiB")]
    TooLong,
    /// Not of the shape of a format that is accepted here.
    #[error("the token is not of a format that is accepted here")]
    Malformed,
    /// Names a key of this format that is not among ours.
    #[error("the token names a key that is not accepted here")]
    UnknownKey,
    /// Its header says another algorithm than the one that its key is for.
    #[error("the token's header is not of its key's algorithm")]
    WrongAlgorithm,
    /// The tag or signature is not its key's.
    #[error("the token was not made with the key that it names")]
    Forged,
    /// Authentic, but not with the claims of an access token.
    #[error(transparent)]
    Claims(#[from] InvalidClaims),
    /// Authentic, and for another use: its `token_use` is not `access`.
    #[error("the token is no access token")]
    WrongUse,
    /// A JWT whose `typ` is not `at+jwt`.
    #[error("the token's type is not at+jwt")]
    WrongType,
    /// Of another issuer.
    #[error("the token is of another issuer")]
    WrongIssuer,
    /// For another audience.
    #[error("the token is for another audience")]
    WrongAudience,
    /// From the future, by more than the leeway.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// `sub`, `sid` or `jti` is no UUID.
    #[error("the token's subject, session or id is no UUID")]
    InvalidSubject,
    /// Good but for this: its session has ended.
    #[error("the token's session has ended")]
    SessionEnded,
    /// Good but for this: its user has other roles since.
    #[error("the user's roles have changed since the token was made")]
    RolesChanged,
    /// Nobody has said for a while what was revoked: sessions and roles, or the key that it names.
    #[error("what has been revoked is not known at the moment")]
    RevocationsUnknown,
}
