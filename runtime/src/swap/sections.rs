//! The mailbox and the sessions as bytes; both are streams of the manifest like any object.
//!
//! ```text
//!   mailbox    u64 messages   u64 bytes of `seen`, `seen`
//!              x { u32 bytes, source   u32 bytes, key   u64 bytes of payload   u8 place
//!                  [ place 0: the payload;  place 1: it is the next of the manifest's bodies ] }
//!   sessions   u64 sessions
//!              x { u128 client   u64 base   u64 results   x { result }
//!                  u64 passed   x { u64 sequence   result } }
//!   result     u8 0: never came | 1: forgotten | 2: done { u16 status, u64 bytes, output }
//! ```
//!
//! Small payloads lie among the rest, since a chunk of its own would cost more than they are;
//! larger ones are streams, so that they go from and to their own memory without a copy.

use praas_transport::{Buf, BufPool};

use super::RejectReason;
use super::bytes::{Reader, malformed};
use super::reader::ReadError;
use crate::invocation::{ResultImage, Session, SessionImage, Status};
use crate::mailbox::{MailMessage, Mailbox, MailboxImage, MailboxLimits};

/// Payloads from this many bytes on are streams of their own.
pub(super) const BODY_MIN_BYTES: usize = 64 << 10;

const PLACE_INLINE: u8 = 0;
const PLACE_BODY: u8 = 1;

const RESULT_NEVER: u8 = 0;
const RESULT_FORGOTTEN: u8 = 1;
const RESULT_DONE: u8 = 2;

/// The mailbox's bytes, and the payloads that lie outside them.
pub(super) fn encode_mailbox(image: &MailboxImage) -> (Vec<u8>, Vec<&[u8]>) {
    let mut out = Vec::new();
    let mut bodies = Vec::new();
    put_length(&mut out, image.messages.len());
    put_length(&mut out, image.seen.len());
    out.extend_from_slice(&image.seen);
    for message in &image.messages {
        for text in [&message.source, &message.key] {
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        put_length(&mut out, message.payload.len());
        if message.payload.len() < BODY_MIN_BYTES {
            out.push(PLACE_INLINE);
            out.extend_from_slice(&message.payload);
        } else {
            out.push(PLACE_BODY);
            bodies.push(&message.payload[..]);
        }
    }
    (out, bodies)
}

/// The mailbox out of its bytes and bodies; small payloads are copied into memory of their own,
/// so that one message left in the mailbox does not keep all of it.
pub(super) fn decode_mailbox(
    bytes: &[u8],
    bodies: Vec<Buf>,
    pool: &BufPool,
) -> Result<MailboxImage, ReadError> {
    let mut reader = Reader::new(bytes);
    let mut bodies = bodies.into_iter();
    let count = reader.length("mailbox's count")?;
    let seen = reader.length("mailbox's senders")?;
    let seen = reader.take(seen, "mailbox's senders")?.to_vec();
    let mut messages = Vec::new();
    for _ in 0..count {
        let length = reader.u32("message's source")? as usize;
        let source = reader.text(length, "message's source")?;
        let length = reader.u32("message's key")? as usize;
        let key = reader.text(length, "message's key")?;
        let length = reader.length("message's length")?;
        let payload = match reader.u8("message's place")? {
            PLACE_INLINE => pool
                .copy_from(reader.take(length, "message's payload")?)
                .map_err(|source| ReadError::Pool("the mailbox".into(), source))?,
            PLACE_BODY => bodies
                .next()
                .filter(|body| body.len() == length)
                .ok_or(malformed("message's body"))?,
            _ => return Err(malformed("message's place").into()),
        };
        messages.push(MailMessage {
            source,
            key,
            payload,
        });
    }
    reader.finish("end of the mailbox")?;
    match bodies.next() {
        None => Ok(MailboxImage { messages, seen }),
        Some(_) => Err(malformed("body that no message has").into()),
    }
}

/// The mailbox's bytes and bodies, for a transfer.
pub(crate) fn mailbox_encode(image: &MailboxImage) -> (Vec<u8>, Vec<Buf>) {
    let (bytes, _) = encode_mailbox(image);
    let payloads = image.messages.iter().map(|message| &message.payload);
    let bodies = payloads.filter(|payload| payload.len() >= BODY_MIN_BYTES);
    (bytes, bodies.cloned().collect())
}

/// The mailbox out of what [`mailbox_encode`] made; `None` if it is none, or memory is short.
pub(crate) fn mailbox_decode(
    bytes: &[u8],
    bodies: Vec<Buf>,
    pool: &BufPool,
) -> Option<MailboxImage> {
    decode_mailbox(bytes, bodies, pool).ok()
}

/// The sessions' bytes.
pub(crate) fn encode_sessions(sessions: &[SessionImage]) -> Vec<u8> {
    let mut out = Vec::new();
    put_length(&mut out, sessions.len());
    for session in sessions {
        out.extend_from_slice(&session.client.to_le_bytes());
        out.extend_from_slice(&session.base.to_le_bytes());
        put_length(&mut out, session.results.len());
        for result in &session.results {
            encode_result(&mut out, result);
        }
        put_length(&mut out, session.passed.len());
        for (sequence, result) in &session.passed {
            out.extend_from_slice(&sequence.to_le_bytes());
            encode_result(&mut out, result);
        }
    }
    out
}

fn encode_result(out: &mut Vec<u8>, result: &ResultImage) {
    match result {
        None => out.push(RESULT_NEVER),
        Some((None, _)) => out.push(RESULT_FORGOTTEN),
        Some((Some(status), output)) => {
            out.push(RESULT_DONE);
            out.extend_from_slice(&(*status as u16).to_le_bytes());
            put_length(out, output.len());
            out.extend_from_slice(output);
        }
    }
}

fn decode_result(reader: &mut Reader<'_>) -> Result<ResultImage, RejectReason> {
    Ok(match reader.u8("result")? {
        RESULT_NEVER => None,
        RESULT_FORGOTTEN => Some((None, Buf::default())),
        RESULT_DONE => {
            let status = Status::from_code(reader.u16("result's status")?)
                .ok_or(malformed("result's status"))?;
            let length = reader.length("result's length")?;
            let output = reader.take(length, "result")?.to_vec();
            Some((Some(status), Buf::from_vec(output)))
        }
        _ => return Err(malformed("result")),
    })
}

/// The sessions out of their bytes.
pub(crate) fn decode_sessions(bytes: &[u8]) -> Result<Vec<SessionImage>, RejectReason> {
    let mut reader = Reader::new(bytes);
    let count = reader.length("sessions' count")?;
    let mut sessions = Vec::new();
    for _ in 0..count {
        let client = reader.u128("session's client")?;
        let base = reader.u64("session's base")?;
        let mut results = Vec::new();
        for _ in 0..reader.length("session's count")? {
            results.push(decode_result(&mut reader)?);
        }
        let mut passed = Vec::new();
        for _ in 0..reader.length("session's passed count")? {
            passed.push((reader.u64("passed sequence")?, decode_result(&mut reader)?));
        }
        sessions.push(SessionImage {
            client,
            base,
            results,
            passed,
        });
    }
    reader.finish("end of the sessions")?;
    Ok(sessions)
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&(length as u64).to_le_bytes());
}

/// Reads arbitrary bytes as a mailbox and as sessions: what is accepted reads the same once
/// written.
#[doc(hidden)]
pub fn fuzz_sections(bytes: &[u8]) {
    let pool = BufPool::new(16 << 20);
    if let Ok(mailbox) = decode_mailbox(bytes, Vec::new(), &pool) {
        let (again, bodies) = encode_mailbox(&mailbox);
        let bodies = bodies.into_iter().map(|body| Buf::from_vec(body.to_vec()));
        let twice = decode_mailbox(&again, bodies.collect(), &pool);
        assert!(
            matches!(twice, Ok(twice) if twice == mailbox),
            "another mailbox"
        );
        // What is known of resends is a value of the codec.
        let limits = MailboxLimits {
            messages_max: 1 << 10,
            bytes_max: 1 << 20,
        };
        drop(Mailbox::new(limits).restore(mailbox));
    }
    if let Ok(sessions) = decode_sessions(bytes) {
        let twice = decode_sessions(&encode_sessions(&sessions));
        assert!(
            matches!(&twice, Ok(twice) if *twice == sessions),
            "other sessions"
        );
        for session in sessions {
            drop(Session::restore(session, 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_sections_or_not(
            count in 0..3_u8,
            bytes in proptest::collection::vec(0..4_u8, 0..200),
        ) {
            let mut counted = vec![count, 0, 0, 0, 0, 0, 0, 0];
            counted.extend(bytes);
            fuzz_sections(&counted);
        }
    }
}
