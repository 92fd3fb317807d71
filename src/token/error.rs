//! What goes wrong with tokens.

#[cfg(doc)]
use super::MAX_TOKEN_BYTES;
use super::claims::InvalidClaims;

/// Why no token could be made.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IssueError {
    /// There is no key to make one with.
    #[error("no token could be made: no signing key can be opened")]
    NoKey,
    /// There is a key, but for too long nothing has confirmed that it is still good.
    #[error("no token could be made: it is not known at the moment which keys are good")]
    KeysUnknown,
    /// The system had no randomness, or the signature failed.
    #[error("no token could be made: no randomness, or no signature")]
    Failed,
}

/// Why a token was refused. This is for logs and metrics; the client learns no more than
/// [`Refusal::code`](crate::bearer::Refusal::code) says.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than 8 KiB")]
    TooLong,
    /// Not in the shape of a format that is accepted here.
    #[error("the token is not of a format that is accepted here")]
    Malformed,
    /// Names a key of its format that is not among ours.
    #[error("the token names a key that is not accepted here")]
    UnknownKey,
    /// Its header names an algorithm other than the one that its key is for.
    #[error("the token's header names an algorithm other than its key's")]
    WrongAlgorithm,
    /// The tag or signature was not made with the key that it names.
    #[error("the token was not made with the key that it names")]
    Forged,
    /// Authentic, but not with the claims of an access token.
    #[error(transparent)]
    Claims(#[from] InvalidClaims),
    /// Authentic, but for another use: its `token_use` is not `access`.
    #[error("the token is not an access token")]
    WrongUse,
    /// A JWT whose `typ` is not `at+jwt`.
    #[error("the token's type is not at+jwt")]
    WrongType,
    /// From another issuer.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// For another audience.
    #[error("the token is for another audience")]
    WrongAudience,
    /// Its `nbf` or `iat` is in the future by more than the leeway.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// Its `sub`, `sid` or `jti` is not a UUID.
    #[error("the token's subject, session or id is not a UUID")]
    InvalidSubject,
    /// Valid in itself, but its session has ended.
    #[error("the token's session has ended")]
    SessionEnded,
    /// Valid in itself, but its user's roles have changed since.
    #[error("the user's roles have changed since the token was made")]
    RolesChanged,
    /// For too long there has been no news of what was revoked: of sessions and roles, or of the key that it names.
    #[error("what has been revoked is not known at the moment")]
    RevocationsUnknown,
}
