//! The handshake: who we are, which version we speak, and that we hold the ticket's key.
//!
//! ```text
//!  dialler                                            listener
//!    | Hello   magic, versions, caps, host, identity,    |
//!    |         expected incarnation, nonce_c, ticket     |
//!    |-------------------------------------------------->|  verifies the ticket offline
//!    |     Challenge  version, caps, identity, nonce_s,  |
//!    |<-------------- proof_s = HMAC(key, "s" || both) --|  or Refuse { code, text }
//!    | Proof   proof_c = HMAC(key, "c" || both)          |
//!    |-------------------------------------------------->|
//!    |<------------------------------------------ Accept |  or Refuse { code, text }
//! ```
//!
//! Both proofs cover every byte of Hello and of Challenge before its proof, hence both nonces. The
//! machines here take bytes and give bytes; sockets and clocks are the caller's. Each message is a
//! u16 length and that many bytes, the first of which is its type; none is above
//! [`HANDSHAKE_MESSAGE_MAX_BYTES`].

use super::WireError;
use crate::address::HostId;
use crate::ticket::{
    Authenticator, Credential, NAME_MAX_BYTES, RefuseReason, Role, TICKET_MAX_BYTES, Ticket,
    TicketKey,
};

/// Bytes that a handshake message may have, its length field apart.
pub const HANDSHAKE_MESSAGE_MAX_BYTES: usize = 1024;

/// The protocol version of this build.
pub const WIRE_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"PRAAS\r\n\x1a";
const TEXT_MAX_BYTES: usize = 200;

const HELLO: u8 = 1;
const CHALLENGE: u8 = 2;
const PROOF: u8 = 3;
const ACCEPT: u8 = 4;
const REFUSE: u8 = 5;
const BULK_HELLO: u8 = 6;

/// A number that fences: a later life of the same process has a larger one. Zero is none, which
/// clients have.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Incarnation(pub u64);

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Who an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The application it belongs to.
    pub application: Box<str>,
    /// Its name, or an empty one.
    pub name: Box<str>,
    /// Its incarnation; zero for clients.
    pub incarnation: Incarnation,
    /// Its client id: by it invocations are told apart from other clients'.
    pub client_id: u128,
}

/// Who is on the other side of a channel, as proven in the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The application of the ticket.
    pub application: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its incarnation; zero for clients.
    pub incarnation: Incarnation,
    /// The role that its ticket gives it; of a listener, whatever it was dialled as.
    pub role: Option<Role>,
    /// Its client id.
    pub client_id: u128,
}

/// What both sides can do on a channel: a bit set on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// The side is registered for expedited global memory barriers (shared memory).
    pub const MEMBARRIER: Self = Self(1);
    const KNOWN: u32 = 1;

    /// What both have.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0 & Self::KNOWN)
    }

    /// Whether all of `other` is in it.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// How a handshake ended badly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The listener refuses, or we refuse the dialler.
    #[error("{reason}: {text}")]
    Refused {
        /// Why, as a code.
        reason: RefuseReason,
        /// What the refusing side says of it.
        text: String,
    },
    /// The peer's bytes are no handshake.
    #[error("malformed handshake: {0}")]
    Wire(#[from] WireError),
}

/// What a handshake agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The peer.
    pub peer: PeerIdentity,
    /// The peer's host.
    pub host: HostId,
    /// What both can do.
    pub caps: Capabilities,
    /// The protocol version.
    pub version: u16,
    /// Names the channel where only its two sides can: the bulk lane shows it on its own socket.
    pub session: [u8; 16],
    /// What the transport adds to Accept.
    pub params: Vec<u8>,
}

/// What the caller does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Waits for more bytes.
    More,
    /// Sends these bytes, then waits.
    Send(Vec<u8>),
    /// Sends these bytes (a listener's Accept; empty for a dialler), then the channel is open.
    Done(Vec<u8>, Agreed),
    /// The dialler wants the bulk lane of the channel with this token.
    Bulk([u8; 16]),
}

/// What one side says of itself in the handshake.
#[derive(Debug, Clone)]
pub struct Local {
    /// Who we are.
    pub identity: Identity,
    /// What we can do.
    pub caps: Capabilities,
    /// Sixteen random bytes, never used again.
    pub nonce: [u8; 16],
}

/// Splits the first whole message off `input`: its bytes and how many to drop.
fn message_split(input: &[u8]) -> Result<Option<(&[u8], usize)>, WireError> {
    let Some((len, rest)) = input.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_le_bytes(*len));
    if len == 0 || len > HANDSHAKE_MESSAGE_MAX_BYTES {
        return Err(WireError::TooLong {
            what: "handshake message",
            len: len as u64,
            limit: HANDSHAKE_MESSAGE_MAX_BYTES as u64,
        });
    }
    Ok(rest.get(..len).map(|message| (message, len + 2)))
}

fn message_frame(body: &[u8]) -> Vec<u8> {
    debug_assert!(body.len() <= HANDSHAKE_MESSAGE_MAX_BYTES);
    let mut out = Vec::with_capacity(body.len() + 2);
    out.extend_from_slice(&(body.len() as u16).to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// The message that asks for a channel's bulk lane on a second socket.
pub fn bulk_hello(token: &[u8; 16]) -> Vec<u8> {
    let mut body = vec![BULK_HELLO];
    body.extend_from_slice(&MAGIC);
    body.extend_from_slice(token);
    message_frame(&body)
}

/// The dialler's side.
#[derive(Debug)]
pub struct Dialler {
    local: Local,
    key: TicketKey,
    transcript: Vec<u8>,
    agreed: Option<Agreed>,
}

impl Dialler {
    /// Starts: the bytes to send first, and the machine.
    pub fn start(
        local: Local,
        credential: &Credential,
        expect: Incarnation,
        host: HostId,
    ) -> (Vec<u8>, Self) {
        let mut body = vec![HELLO];
        body.extend_from_slice(&MAGIC);
        body.extend_from_slice(&WIRE_VERSION.to_le_bytes()); // lowest
        body.extend_from_slice(&WIRE_VERSION.to_le_bytes()); // highest
        side_write(&mut body, &local, host);
        body.extend_from_slice(&expect.0.to_le_bytes());
        name_write(
            &mut body,
            &credential.ticket[..credential.ticket.len().min(TICKET_MAX_BYTES)],
        );
        let transcript = body.clone();
        let machine = Self {
            local,
            key: credential.key.clone(),
            transcript,
            agreed: None,
        };
        (message_frame(&body), machine)
    }

    /// Takes bytes from the listener; tells how many were used and what to do.
    ///
    /// # Errors
    /// A refusal, or bytes that are no handshake.
    pub fn feed(&mut self, input: &[u8]) -> Result<(usize, Step), HandshakeError> {
        let Some((message, used)) = message_split(input)? else {
            return Ok((0, Step::More));
        };
        let mut reader = Reader::new(message);
        let step = match (reader.byte("message type")?, self.agreed.take()) {
            (REFUSE, _) => return Err(refusal_read(&mut reader)?),
            (CHALLENGE, None) => self.challenge(&mut reader, message)?,
            (ACCEPT, Some(mut agreed)) => {
                agreed.params = reader.rest.to_vec();
                Step::Done(Vec::new(), agreed)
            }
            _ => {
                return Err(WireError::Malformed {
                    what: "handshake out of order",
                }
                .into());
            }
        };
        Ok((used, step))
    }

    fn challenge(
        &mut self,
        reader: &mut Reader<'_>,
        message: &[u8],
    ) -> Result<Step, HandshakeError> {
        let version = reader.u16("version")?;
        if version != WIRE_VERSION {
            return Err(WireError::Malformed {
                what: "listener chose a version not offered",
            }
            .into());
        }
        let (peer, caps, host) = side_read(reader)?;
        let before = message.len() - reader.rest.len();
        let proof = *reader.chunk::<32>("proof")?;
        reader.end()?;
        self.transcript.extend_from_slice(&message[..before]);
        if !self.key.verify(b"praas listener", &self.transcript, &proof) {
            return Err(HandshakeError::Refused {
                reason: RefuseReason::BadProof,
                text: "the listener does not know the application's secret".into(),
            });
        }
        let mut body = vec![PROOF];
        body.extend_from_slice(&self.key.prove(b"praas dialler", &self.transcript));
        let caps = caps.common(self.local.caps);
        let session = session(&self.key, &self.transcript);
        self.agreed = Some(Agreed {
            peer,
            host,
            caps,
            version,
            session,
            params: Vec::new(),
        });
        Ok(Step::Send(message_frame(&body)))
    }
}

/// The listener's side.
#[derive(Debug)]
pub struct Listener {
    local: Local,
    host: HostId,
    params: Vec<u8>,
    state: ListenerState,
}

#[derive(Debug)]
enum ListenerState {
    Hello,
    Proof {
        key: TicketKey,
        transcript: Vec<u8>,
        agreed: Box<Agreed>,
    },
    Over,
}

impl Listener {
    /// A machine that waits for a Hello; `params` go out with Accept.
    pub fn start(local: Local, host: HostId, params: Vec<u8>) -> Self {
        Self {
            local,
            host,
            params,
            state: ListenerState::Hello,
        }
    }

    /// Whether the dialler has shown a good ticket and is yet to prove it.
    pub fn awaits_proof(&self) -> bool {
        matches!(self.state, ListenerState::Proof { .. })
    }

    /// Takes bytes from the dialler; tells how many were used and what to do.
    ///
    /// # Errors
    /// When we refuse, or the bytes are no handshake; [`refusal`] makes the bytes that tell the
    /// dialler.
    pub fn feed(
        &mut self,
        input: &[u8],
        auth: Option<&dyn Authenticator>,
        now_unix_ms: u64,
    ) -> Result<(usize, Step), HandshakeError> {
        let Some((message, used)) = message_split(input)? else {
            return Ok((0, Step::More));
        };
        let mut reader = Reader::new(message);
        let kind = reader.byte("message type")?;
        match (
            kind,
            std::mem::replace(&mut self.state, ListenerState::Over),
        ) {
            (HELLO, ListenerState::Hello) => {
                let step = self.hello(&mut reader, message, auth, now_unix_ms)?;
                Ok((used, step))
            }
            (BULK_HELLO, ListenerState::Hello) => {
                magic_check(&mut reader)?;
                let token = *reader.chunk::<16>("token")?;
                reader.end()?;
                Ok((used, Step::Bulk(token)))
            }
            (
                PROOF,
                ListenerState::Proof {
                    key,
                    transcript,
                    agreed,
                },
            ) => {
                let proof = *reader.chunk::<32>("proof")?;
                reader.end()?;
                if !key.verify(b"praas dialler", &transcript, &proof) {
                    return Err(refuse(
                        RefuseReason::BadProof,
                        "the ticket's key was not proven",
                    ));
                }
                let mut body = vec![ACCEPT];
                body.extend_from_slice(&self.params);
                Ok((used, Step::Done(message_frame(&body), *agreed)))
            }
            _ => Err(WireError::Malformed {
                what: "handshake out of order",
            }
            .into()),
        }
    }

    fn hello(
        &mut self,
        reader: &mut Reader<'_>,
        message: &[u8],
        auth: Option<&dyn Authenticator>,
        now_unix_ms: u64,
    ) -> Result<Step, HandshakeError> {
        magic_check(reader)?;
        let (lowest, highest) = (reader.u16("version")?, reader.u16("version")?);
        if !(lowest..=highest).contains(&WIRE_VERSION) {
            let text =
                format!("this side speaks {WIRE_VERSION}, the dialler {lowest} to {highest}");
            return Err(HandshakeError::Refused {
                reason: RefuseReason::Version,
                text,
            });
        }
        let (mut peer, caps, host) = side_read(reader)?;
        let expect = Incarnation(reader.u64("incarnation")?);
        let ticket_bytes = reader.name("ticket", TICKET_MAX_BYTES)?;
        reader.end()?;
        let auth = auth.ok_or_else(|| {
            refuse(
                RefuseReason::NotAccepting,
                "this endpoint has no secrets to verify tickets with",
            )
        })?;
        let (ticket, key) = auth
            .verify(ticket_bytes, now_unix_ms)
            .map_err(|reason| refuse(reason, "ask the control plane for a new ticket"))?;
        identity_check(&mut peer, &ticket)?;
        if expect.0 != 0 && expect != self.local.identity.incarnation {
            let text = format!(
                "asked for {expect}, this is {}",
                self.local.identity.incarnation
            );
            return Err(HandshakeError::Refused {
                reason: RefuseReason::WrongIncarnation,
                text,
            });
        }
        let mut body = vec![CHALLENGE];
        body.extend_from_slice(&WIRE_VERSION.to_le_bytes());
        side_write(&mut body, &self.local, self.host);
        let mut transcript = message.to_vec();
        transcript.extend_from_slice(&body);
        body.extend_from_slice(&key.prove(b"praas listener", &transcript));
        let caps = caps.common(self.local.caps);
        let session = session(&key, &transcript);
        let agreed = Box::new(Agreed {
            peer,
            host,
            caps,
            version: WIRE_VERSION,
            session,
            params: Vec::new(),
        });
        self.state = ListenerState::Proof {
            key,
            transcript,
            agreed,
        };
        Ok(Step::Send(message_frame(&body)))
    }
}

/// The bytes that tell a dialler why it is refused.
pub fn refusal(error: &HandshakeError) -> Vec<u8> {
    let (reason, text) = match error {
        HandshakeError::Refused { reason, text } => (*reason, text.clone()),
        HandshakeError::Wire(error) => (RefuseReason::Malformed, error.to_string()),
    };
    let mut cut = text.len().min(TEXT_MAX_BYTES);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut body = vec![REFUSE];
    body.extend_from_slice(&(reason as u16).to_le_bytes());
    name_write(&mut body, &text.as_bytes()[..cut]);
    message_frame(&body)
}

fn session(key: &TicketKey, transcript: &[u8]) -> [u8; 16] {
    let mut session = [0; 16];
    session.copy_from_slice(&key.prove(b"praas session", transcript)[..16]);
    session
}

fn refuse(reason: RefuseReason, text: &str) -> HandshakeError {
    HandshakeError::Refused {
        reason,
        text: text.into(),
    }
}

fn refusal_read(reader: &mut Reader<'_>) -> Result<HandshakeError, WireError> {
    let code = reader.u16("refusal")?;
    let text = reader.name("refusal text", TEXT_MAX_BYTES)?;
    let reason = RefuseReason::from_code(code).ok_or(WireError::Malformed {
        what: "unknown reason of refusal",
    })?;
    Ok(HandshakeError::Refused {
        reason,
        text: String::from_utf8_lossy(text).into_owned(),
    })
}

/// What a dialler says of itself must fit its ticket: the application and the client id are the
/// ticket's, and only processes have a name and an incarnation to speak for.
fn identity_check(peer: &mut PeerIdentity, ticket: &Ticket) -> Result<(), HandshakeError> {
    if peer.application != ticket.application {
        let text = format!("the ticket is for '{}'", ticket.application);
        return Err(HandshakeError::Refused {
            reason: RefuseReason::WrongApplication,
            text,
        });
    }
    if ticket.role == Role::Client {
        // It would be taken for the process of that name.
        if peer.incarnation.0 != 0 || !peer.name.is_empty() {
            return Err(refuse(
                RefuseReason::WrongRole,
                "a client has no name and no incarnation",
            ));
        }
        if ticket.client_id != 0 && ticket.client_id != peer.client_id {
            return Err(refuse(
                RefuseReason::WrongRole,
                "the ticket is for another client id",
            ));
        }
    }
    peer.role = Some(ticket.role);
    Ok(())
}

fn magic_check(reader: &mut Reader<'_>) -> Result<(), WireError> {
    match *reader.chunk::<8>("magic")? == MAGIC {
        true => Ok(()),
        false => Err(WireError::Malformed {
            what: "these are not praas's magic bytes",
        }),
    }
}

fn name_write(out: &mut Vec<u8>, name: &[u8]) {
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(name);
}

fn side_write(out: &mut Vec<u8>, local: &Local, host: HostId) {
    let cut = |name: &str| name.len().min(NAME_MAX_BYTES);
    let identity = &local.identity;
    out.extend_from_slice(&local.caps.0.to_le_bytes());
    out.extend_from_slice(&host.0.to_le_bytes());
    out.extend_from_slice(&local.nonce);
    out.extend_from_slice(&identity.client_id.to_le_bytes());
    out.extend_from_slice(&identity.incarnation.0.to_le_bytes());
    name_write(
        out,
        &identity.application.as_bytes()[..cut(&identity.application)],
    );
    name_write(out, &identity.name.as_bytes()[..cut(&identity.name)]);
}

fn side_read(reader: &mut Reader<'_>) -> Result<(PeerIdentity, Capabilities, HostId), WireError> {
    let caps = Capabilities(reader.u32("capabilities")?);
    let host = HostId(u128::from_le_bytes(*reader.chunk::<16>("host id")?));
    reader.chunk::<16>("nonce")?;
    let client_id = u128::from_le_bytes(*reader.chunk::<16>("client id")?);
    let incarnation = Incarnation(reader.u64("incarnation")?);
    let application = reader.text("application", NAME_MAX_BYTES)?.into();
    let name = reader.text("name", NAME_MAX_BYTES)?.into();
    Ok((
        PeerIdentity {
            application,
            name,
            incarnation,
            role: None,
            client_id,
        },
        caps,
        host,
    ))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, needed: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let truncated = WireError::Truncated {
            what,
            needed,
            have: self.rest.len(),
        };
        let (taken, rest) = self.rest.split_at_checked(needed).ok_or(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self, what: &'static str) -> Result<&'a [u8; N], WireError> {
        let truncated = WireError::Truncated {
            what,
            needed: N,
            have: self.rest.len(),
        };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, WireError> {
        Ok(self.chunk::<1>(what)?[0])
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(*self.chunk(what)?))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(*self.chunk(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(*self.chunk(what)?))
    }

    fn name(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], WireError> {
        let len = usize::from(self.u16(what)?);
        if len > limit {
            return Err(WireError::TooLong {
                what,
                len: len as u64,
                limit: limit as u64,
            });
        }
        self.take(len, what)
    }

    fn text(&mut self, what: &'static str, limit: usize) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.name(what, limit)?).map_err(|_| WireError::Malformed {
            what: "a name is not UTF-8",
        })
    }

    fn end(&self) -> Result<(), WireError> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(WireError::Malformed {
                what: "handshake message has bytes left over",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::{Keyring, Secret};

    fn local(name: &str, incarnation: u64) -> Local {
        let identity = Identity {
            application: "app".into(),
            name: name.into(),
            incarnation: Incarnation(incarnation),
            client_id: 9,
        };
        Local {
            identity,
            caps: Capabilities(1),
            nonce: [incarnation as u8; 16],
        }
    }

    fn credential(secret: &Secret, application: &str) -> Credential {
        let ticket = Ticket {
            application: application.into(),
            role: Role::Client,
            client_id: 0,
            expires_unix_ms: 100,
            key_id: 1,
        };
        Credential::issue(secret, &ticket)
    }

    fn run(
        dial: &Credential,
        keyring: &Keyring,
        expect: u64,
        now: u64,
    ) -> Result<(Agreed, Agreed), HandshakeError> {
        let (hello, mut dialler) =
            Dialler::start(local("", 0), dial, Incarnation(expect), HostId(1));
        let mut listener = Listener::start(local("server", 5), HostId(2), Vec::new());
        let (used, step) = listener.feed(&hello, Some(keyring), now)?;
        assert_eq!(used, hello.len());
        let Step::Send(challenge) = step else {
            panic!("{step:?}")
        };
        let (_, Step::Send(proof)) = dialler.feed(&challenge)? else {
            panic!()
        };
        let (_, Step::Done(accept, at_listener)) = listener.feed(&proof, Some(keyring), now)?
        else {
            panic!()
        };
        let (_, Step::Done(_, at_dialler)) = dialler.feed(&accept)? else {
            panic!()
        };
        Ok((at_dialler, at_listener))
    }

    #[test]
    fn a_client_speaks_for_no_process() {
        let secret = Secret::generate().unwrap();
        let keyring = Keyring::new();
        keyring.insert("app", 1, secret.clone());
        for (name, incarnation) in [("worker", 0), ("", 3)] {
            let (hello, _) = Dialler::start(
                local(name, incarnation),
                &credential(&secret, "app"),
                Incarnation(0),
                HostId(1),
            );
            let mut listener = Listener::start(local("server", 5), HostId(2), Vec::new());
            let error = listener.feed(&hello, Some(&keyring), 0).unwrap_err();
            let HandshakeError::Refused { reason, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(reason, RefuseReason::WrongRole);
        }
    }

    #[test]
    fn both_sides_learn_who_the_other_is() {
        let secret = Secret::generate().unwrap();
        let keyring = Keyring::new();
        keyring.insert("app", 1, secret.clone());
        let (at_dialler, at_listener) = run(&credential(&secret, "app"), &keyring, 5, 0).unwrap();
        assert_eq!(&*at_dialler.peer.name, "server");
        assert_eq!(at_dialler.peer.incarnation, Incarnation(5));
        assert_eq!(at_listener.peer.client_id, 9);
        assert_eq!(at_listener.peer.role, Some(Role::Client));
        assert_eq!((at_dialler.host, at_listener.host), (HostId(2), HostId(1)));
    }

    #[test]
    fn refusals_name_their_reason() {
        let secret = Secret::generate().unwrap();
        let keyring = Keyring::new();
        keyring.insert("app", 1, secret.clone());
        keyring.insert("other", 1, secret.clone());
        let reason = |result: Result<_, HandshakeError>| match result.unwrap_err() {
            HandshakeError::Refused { reason, .. } => reason,
            HandshakeError::Wire(error) => panic!("{error}"),
        };
        let good = credential(&secret, "app");
        assert_eq!(
            reason(run(&good, &keyring, 6, 0)),
            RefuseReason::WrongIncarnation
        );
        assert_eq!(reason(run(&good, &keyring, 0, 100)), RefuseReason::Expired);
        let other = credential(&secret, "other");
        assert_eq!(
            reason(run(&other, &keyring, 0, 0)),
            RefuseReason::WrongApplication
        );
        let mut forged = credential(&Secret::generate().unwrap(), "app");
        assert_eq!(reason(run(&forged, &keyring, 0, 0)), RefuseReason::BadProof);
        forged.ticket.truncate(3);
        assert_eq!(
            reason(run(&forged, &keyring, 0, 0)),
            RefuseReason::Malformed
        );
    }

    #[test]
    fn another_version_is_refused_in_words() {
        let secret = Secret::generate().unwrap();
        let dial = credential(&secret, "app");
        let (mut hello, mut dialler) =
            Dialler::start(local("", 0), &dial, Incarnation(0), HostId(1));
        hello[11..15].copy_from_slice(&[9, 0, 9, 0]);
        let mut listener = Listener::start(local("server", 5), HostId(2), Vec::new());
        let error = listener.feed(&hello, None, 0).unwrap_err();
        let told = dialler.feed(&refusal(&error)).unwrap_err();
        assert_eq!(told, error);
        assert!(
            told.to_string().contains("speaks 1, the dialler 9 to 9"),
            "{told}"
        );
    }
}
