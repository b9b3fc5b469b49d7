//! Tickets: who may open a channel, verified offline.
//!
//! A *secret* belongs to an application and has a key id. A *ticket* names the application, the
//! role, the client and an expiry. The *ticket key* is HMAC-SHA256(secret, ticket bytes): whoever
//! issued the ticket hands both to its holder, who proves possession of the key in the handshake
//! without ever sending it. A listener that knows the secret derives the key again. Raising the
//! key id revokes everything issued before.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Bytes that a name (application, process, client) may have.
pub const NAME_MAX_BYTES: usize = 255;

/// Bytes that an encoded ticket may have.
pub const TICKET_MAX_BYTES: usize = 1 + 1 + NAME_MAX_BYTES + 16 + 8 + 4 + 1;

const TICKET_VERSION: u8 = 1;

/// What the holder of a ticket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Role {
    /// Invokes functions and puts messages.
    Client = 1,
    /// A cloud process of the application.
    Process = 2,
    /// A node agent.
    Agent = 3,
    /// The control plane.
    Control = 4,
}

impl Role {
    /// The role that `code` stands for on the wire.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Client,
            2 => Self::Process,
            3 => Self::Agent,
            4 => Self::Control,
            _ => return None,
        })
    }
}

/// Why bytes are not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// The bytes end too early or go on too long.
    #[error("ticket of {0} bytes has the wrong length")]
    Length(usize),
    /// Another version of the format.
    #[error("ticket format {0} is not known here")]
    Version(u8),
    /// A role code that is not known.
    #[error("ticket names the unknown role {0}")]
    Role(u8),
    /// The application's name is not UTF-8.
    #[error("ticket's application name is not UTF-8")]
    Name,
}

/// What a ticket says. Its authenticity hangs on the key, not on the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The application whose processes the holder may talk to.
    pub application: Box<str>,
    /// What the holder is.
    pub role: Role,
    /// The holder's client id.
    pub client_id: u128,
    /// When it stops being good, in milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
    /// Which of the application's secrets it was issued under.
    pub key_id: u32,
}

impl Ticket {
    /// The bytes of the ticket: version, role, name length, name, client id, expiry, key id.
    ///
    /// A name above [`NAME_MAX_BYTES`] is cut by the caller's checks; here it saturates.
    pub fn encode(&self) -> Vec<u8> {
        let name = &self.application.as_bytes()[..self.application.len().min(NAME_MAX_BYTES)];
        let mut out = Vec::with_capacity(TICKET_MAX_BYTES);
        out.push(TICKET_VERSION);
        out.push(self.role as u8);
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend_from_slice(&self.client_id.to_le_bytes());
        out.extend_from_slice(&self.expires_unix_ms.to_le_bytes());
        out.extend_from_slice(&self.key_id.to_le_bytes());
        out
    }

    /// Reads a ticket.
    ///
    /// # Errors
    /// Anything that [`Ticket::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, TicketError> {
        let wrong_length = || TicketError::Length(bytes.len());
        let (&[version, role, name_len], rest) =
            bytes.split_first_chunk::<3>().ok_or_else(wrong_length)?;
        if version != TICKET_VERSION {
            return Err(TicketError::Version(version));
        }
        let role = Role::from_code(role).ok_or(TicketError::Role(role))?;
        let (name, rest) = rest
            .split_at_checked(usize::from(name_len))
            .ok_or_else(wrong_length)?;
        let (client_id, rest) = rest.split_first_chunk::<16>().ok_or_else(wrong_length)?;
        let (expires, rest) = rest.split_first_chunk::<8>().ok_or_else(wrong_length)?;
        let (key_id, rest) = rest.split_first_chunk::<4>().ok_or_else(wrong_length)?;
        if !rest.is_empty() {
            return Err(wrong_length());
        }
        Ok(Self {
            application: std::str::from_utf8(name)
                .map_err(|_| TicketError::Name)?
                .into(),
            role,
            client_id: u128::from_le_bytes(*client_id),
            expires_unix_ms: u64::from_le_bytes(*expires),
            key_id: u32::from_le_bytes(*key_id),
        })
    }
}

/// An application's secret, from which every ticket key is derived.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new secret from the kernel's random number generator.
    ///
    /// # Errors
    /// The generator's own.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The secret with these bytes, as read back from a store.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret's bytes, for a store of mode 0600 or an inherited descriptor.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that belongs to a ticket's bytes.
    pub fn ticket_key(&self, ticket: &[u8]) -> TicketKey {
        TicketKey(hmac_sha256(&self.0, &[b"praas ticket 1", ticket]))
    }
}

/// The key that proves a ticket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey([u8; 32]);

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

impl TicketKey {
    /// The proof that the holder of this key saw `transcript`, as `label`.
    pub fn prove(&self, label: &[u8], transcript: &[u8]) -> [u8; 32] {
        hmac_sha256(&self.0, &[label, transcript])
    }

    /// Whether `proof` is this key's for `label` and `transcript`, in constant time.
    pub fn verify(&self, label: &[u8], transcript: &[u8], proof: &[u8; 32]) -> bool {
        hmac_state(&self.0, &[label, transcript])
            .verify_slice(proof)
            .is_ok()
    }
}

/// What a dialler holds: a ticket and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The ticket, encoded.
    pub ticket: Vec<u8>,
    /// Its key.
    pub key: TicketKey,
}

impl Credential {
    /// Issues a credential for `ticket` under `secret`.
    pub fn issue(secret: &Secret, ticket: &Ticket) -> Self {
        let ticket = ticket.encode();
        let key = secret.ticket_key(&ticket);
        Self { ticket, key }
    }
}

/// Why a listener refuses a dialler. The code travels on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u16)]
#[non_exhaustive]
pub enum RefuseReason {
    /// No common protocol version.
    #[error("no protocol version in common")]
    Version = 1,
    /// The ticket's bytes are not a ticket.
    #[error("malformed ticket")]
    Malformed = 2,
    /// The ticket has expired.
    #[error("ticket expired")]
    Expired = 3,
    /// The key id is unknown or revoked.
    #[error("ticket's key is unknown or revoked")]
    UnknownKey = 4,
    /// The proof does not match.
    #[error("wrong proof of the ticket's key")]
    BadProof = 5,
    /// The ticket is for another application.
    #[error("ticket is for another application")]
    WrongApplication = 6,
    /// The listener is another incarnation than the one asked for.
    #[error("the incarnation asked for is not the one that listens")]
    WrongIncarnation = 7,
    /// The listener has as many channels as it may have.
    #[error("too many channels")]
    TooManyChannels = 8,
    /// The role may not talk to this listener.
    #[error("role not allowed here")]
    WrongRole = 9,
    /// The listener takes no channels (any more).
    #[error("not accepting channels")]
    NotAccepting = 10,
    /// The dialler is an older incarnation than one already seen.
    #[error("superseded by a newer incarnation")]
    Superseded = 11,
    /// The shared-memory peer belongs to another user.
    #[error("peer belongs to another user")]
    WrongUser = 12,
    /// The listener cannot have the memory to share.
    #[error("no memory to share")]
    NoSegment = 13,
}

impl RefuseReason {
    /// The reason that `code` stands for on the wire.
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Version,
            2 => Self::Malformed,
            3 => Self::Expired,
            4 => Self::UnknownKey,
            5 => Self::BadProof,
            6 => Self::WrongApplication,
            7 => Self::WrongIncarnation,
            8 => Self::TooManyChannels,
            9 => Self::WrongRole,
            10 => Self::NotAccepting,
            11 => Self::Superseded,
            12 => Self::WrongUser,
            13 => Self::NoSegment,
            _ => return None,
        })
    }
}

/// What a listener asks about a ticket.
pub trait Authenticator: Send + Sync {
    /// The ticket and its key, or why it is not good at `now_unix_ms`.
    ///
    /// # Errors
    /// The reason that is sent to the dialler.
    fn verify(&self, ticket: &[u8], now_unix_ms: u64) -> Result<(Ticket, TicketKey), RefuseReason>;
}

/// The secrets of the applications that a listener serves.
#[derive(Debug, Default)]
pub struct Keyring {
    secrets: RwLock<BTreeMap<(Box<str>, u32), Secret>>,
}

impl Keyring {
    /// An empty keyring, which refuses everybody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a secret.
    pub fn insert(&self, application: &str, key_id: u32, secret: Secret) {
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        secrets.insert((application.into(), key_id), secret);
    }

    /// Forgets every secret of `application` below `key_id`, so that its tickets are refused.
    pub fn revoke_below(&self, application: &str, key_id: u32) {
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        secrets.retain(|(name, id), _| &**name != application || *id >= key_id);
    }
}

impl Authenticator for Keyring {
    fn verify(&self, bytes: &[u8], now_unix_ms: u64) -> Result<(Ticket, TicketKey), RefuseReason> {
        let ticket = Ticket::decode(bytes).map_err(|_| RefuseReason::Malformed)?;
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let secret = secrets
            .get(&(ticket.application.clone(), ticket.key_id))
            .ok_or_else(|| {
                let known = secrets.keys().any(|(name, _)| *name == ticket.application);
                match known || secrets.is_empty() {
                    true => RefuseReason::UnknownKey,
                    false => RefuseReason::WrongApplication,
                }
            })?;
        if ticket.expires_unix_ms <= now_unix_ms {
            return Err(RefuseReason::Expired);
        }
        let key = secret.ticket_key(bytes);
        Ok((ticket, key))
    }
}

fn hmac_state(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    // HMAC pads a key with zeros to the hash's block.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

fn hmac_sha256(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    hmac_state(key, parts).finalize().into_bytes().into()
}

/// Reads arbitrary bytes as a ticket: what is accepted encodes to the same bytes.
#[doc(hidden)]
pub fn fuzz_ticket(bytes: &[u8]) {
    if let Ok(ticket) = Ticket::decode(bytes) {
        assert_eq!(ticket.encode(), bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket() -> Ticket {
        Ticket {
            application: "app".into(),
            role: Role::Client,
            client_id: 7,
            expires_unix_ms: 1_000,
            key_id: 3,
        }
    }

    #[test]
    fn keyring_tells_why_it_refuses() {
        let secret = Secret::generate().unwrap();
        let keyring = Keyring::new();
        let credential = Credential::issue(&secret, &ticket());
        assert_eq!(
            keyring.verify(&credential.ticket, 0),
            Err(RefuseReason::UnknownKey)
        );
        keyring.insert("app", 3, secret);
        let (seen, key) = keyring.verify(&credential.ticket, 999).unwrap();
        assert_eq!(seen, ticket());
        assert_eq!(key, credential.key);
        assert_eq!(
            keyring.verify(&credential.ticket, 1_000),
            Err(RefuseReason::Expired)
        );
        keyring.revoke_below("app", 4);
        assert_eq!(
            keyring.verify(&credential.ticket, 0),
            Err(RefuseReason::UnknownKey)
        );
        assert_eq!(keyring.verify(b"\x01", 0), Err(RefuseReason::Malformed));
    }

    proptest! {
        #[test]
        fn decoding_is_the_inverse_of_encoding(name in ".{0,60}", id: u128, ms: u64, key: u32) {
            let ticket = Ticket {
                application: name.into(),
                role: Role::Process,
                client_id: id,
                expires_unix_ms: ms,
                key_id: key,
            };
            prop_assert_eq!(Ticket::decode(&ticket.encode()), Ok(ticket));
        }

        #[test]
        fn any_bytes_decode_or_err(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_ticket(&bytes);
        }
    }
}
