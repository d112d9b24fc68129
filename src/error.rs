//! The one error that crosses modules.
//!
//! A [`Kind`] exists only where some caller acts differently on it: another status, another REST code, a retry, a page to somebody.
//! The message says what was being done, to what and with which values; where a text is part of compatibility, it is written where the
//! check is made and pinned by a test. A missing key is not an error.

use std::{fmt, time::Duration};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about it. The names in [`Kind::name`] travel between tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Malformed request in a way that has no kind of its own.
    BadRequest,
    /// Key that is empty, `.`, `..`, or not decodable.
    KeyIllegal,
    KeyTooLong,
    ValueTooLarge,
    MetadataTooLarge,
    /// Metadata that is not JSON.
    MetadataInvalid,
    ExpirationInvalid,
    ExpirationTtlInvalid,
    CursorInvalid,
    LimitInvalid,
    NamespaceUnknown,
    NamespaceExists,
    NamespacesTooMany,
    /// The account is not on this server.
    AccountUnknown,
    TokenUnknown,
    /// No credential, or one that is unknown, revoked or expired.
    Unauthenticated,
    /// A known credential without the right.
    Forbidden,
    /// One write per key per second, or the guess limit; retry after the given time.
    RateLimited,
    /// `kvasar-at-least` names a version that no origin has written.
    VersionUnknown,
    /// A body or a head that did not arrive in time.
    RequestTimeout,
    /// Overloaded, shutting down, or cut off from what it needs to answer; retry later.
    Unavailable,
    /// Whoever was asked did not answer at all, or not in time.
    Unreachable,
    /// Our own fault, or the disk's; somebody should look.
    Internal,
}

impl Kind {
    pub const ALL: [Kind; 23] = [
        Kind::BadRequest,
        Kind::KeyIllegal,
        Kind::KeyTooLong,
        Kind::ValueTooLarge,
        Kind::MetadataTooLarge,
        Kind::MetadataInvalid,
        Kind::ExpirationInvalid,
        Kind::ExpirationTtlInvalid,
        Kind::CursorInvalid,
        Kind::LimitInvalid,
        Kind::NamespaceUnknown,
        Kind::NamespaceExists,
        Kind::NamespacesTooMany,
        Kind::AccountUnknown,
        Kind::TokenUnknown,
        Kind::Unauthenticated,
        Kind::Forbidden,
        Kind::RateLimited,
        Kind::VersionUnknown,
        Kind::RequestTimeout,
        Kind::Unavailable,
        Kind::Unreachable,
        Kind::Internal,
    ];

    /// The kind's name between tiers, in logs and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::BadRequest => "bad-request",
            Kind::KeyIllegal => "key-illegal",
            Kind::KeyTooLong => "key-too-long",
            Kind::ValueTooLarge => "value-too-large",
            Kind::MetadataTooLarge => "metadata-too-large",
            Kind::MetadataInvalid => "metadata-invalid",
            Kind::ExpirationInvalid => "expiration-invalid",
            Kind::ExpirationTtlInvalid => "expiration-ttl-invalid",
            Kind::CursorInvalid => "cursor-invalid",
            Kind::LimitInvalid => "limit-invalid",
            Kind::NamespaceUnknown => "namespace-unknown",
            Kind::NamespaceExists => "namespace-exists",
            Kind::NamespacesTooMany => "namespaces-too-many",
            Kind::AccountUnknown => "account-unknown",
            Kind::TokenUnknown => "token-unknown",
            Kind::Unauthenticated => "unauthenticated",
            Kind::Forbidden => "forbidden",
            Kind::RateLimited => "rate-limited",
            Kind::VersionUnknown => "version-unknown",
            Kind::RequestTimeout => "request-timeout",
            Kind::Unavailable => "unavailable",
            Kind::Unreachable => "unreachable",
            Kind::Internal => "internal",
        }
    }

    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether this is about whoever was asked, rather than about the request: then a held copy may be answered instead (R5), and the
    /// same request may succeed later.
    pub fn is_outage(self) -> bool {
        matches!(self, Kind::Unavailable | Kind::Unreachable | Kind::Internal)
    }
}

pub struct Error {
    pub kind: Kind,
    pub message: String,
    /// How long the client should wait before it tries again, where that is known.
    pub retry_after: Option<Duration>,
    /// Whether another server answered this, which shows that it is there.
    pub answered: bool,
    /// Whether it is certain that the request had no effect and will have none, so that anything may be asked again elsewhere.
    pub untaken: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), retry_after: None, answered: false, untaken: false, source: None }
    }

    pub fn bad_request(message: impl Into<String>) -> Error {
        Error::new(Kind::BadRequest, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Error {
        Error::new(Kind::Unavailable, message).after(Duration::from_secs(1))
    }

    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Kind::Internal, message)
    }

    /// The same, and the client should wait so long before it tries again.
    pub fn after(mut self, wait: Duration) -> Error {
        self.retry_after = Some(wait);
        self
    }

    /// The same, as another server answered it.
    pub fn from_elsewhere(mut self) -> Error {
        self.answered = true;
        self
    }

    /// The same, and certainly nothing was done of what was asked for.
    pub fn and_untaken(mut self) -> Error {
        self.untaken = true;
        self
    }

    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// The same error for one more of those who asked together; its source stays with the first.
    pub fn copied(&self) -> Error {
        Error {
            kind: self.kind,
            message: self.message.clone(),
            retry_after: self.retry_after,
            answered: self.answered,
            untaken: self.untaken,
            source: None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self, self.kind.name())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::from_name("no-such-kind"), None);
    }
}
