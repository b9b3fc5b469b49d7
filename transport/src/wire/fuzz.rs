//! What fuzzers and property tests feed to the decoders of this module.

use zerocopy::IntoBytes;

use super::{
    Capabilities, Dialler, FRAME_HEADER_BYTES, FrameHeader, HandshakeError, Identity, Incarnation,
    Listener, Local, Step,
};
use crate::address::HostId;
use crate::ticket::{Credential, Keyring, Role, Secret, Ticket};

/// Reads arbitrary bytes as a frame header: what is accepted encodes to the same bytes.
#[doc(hidden)]
pub fn fuzz_frame(bytes: &[u8]) {
    if let Some(chunk) = bytes.first_chunk::<FRAME_HEADER_BYTES>()
        && let Ok((_, header)) = FrameHeader::decode(chunk)
    {
        assert_eq!(header.as_bytes(), chunk);
    }
}

/// Feeds arbitrary bytes to either side of a handshake, in each of its states: they may refuse or
/// wait, never panic, and never agree without a proof. Golden handshake messages are such bytes.
#[doc(hidden)]
pub fn fuzz_handshake(bytes: &[u8]) {
    let mut framed = (bytes.len().min(usize::from(u16::MAX)) as u16)
        .to_le_bytes()
        .to_vec();
    framed.extend_from_slice(bytes);
    for input in [bytes, &framed] {
        for stage in [
            Stage::ListenerFirst,
            Stage::DiallerFirst,
            Stage::ListenerSecond,
            Stage::DiallerSecond,
        ] {
            // What is refused, and why, is of no interest here.
            drop(handshake_with(stage, input));
        }
    }
}

/// Who reads the bytes, and how far the handshake went well before.
#[derive(Debug, Clone, Copy)]
enum Stage {
    ListenerFirst,
    DiallerFirst,
    ListenerSecond,
    DiallerSecond,
}

fn handshake_with(stage: Stage, input: &[u8]) -> Result<(), HandshakeError> {
    let (keyring, credential) = credentials();
    let mut listener = Listener::start(local(), HostId(0), Vec::new());
    if let Stage::ListenerFirst = stage {
        return never_agrees(listener.feed(input, Some(&keyring), 0)?.1);
    }
    let (hello, mut dialler) = Dialler::start(local(), &credential, Incarnation(0), HostId(0));
    if let Stage::DiallerFirst = stage {
        return never_agrees(dialler.feed(input)?.1);
    }
    let (_, Step::Send(challenge)) = listener.feed(&hello, Some(&keyring), 0)? else {
        panic!("an honest Hello was not answered");
    };
    if let Stage::ListenerSecond = stage {
        return never_agrees(listener.feed(input, Some(&keyring), 0)?.1);
    }
    dialler.feed(&challenge)?;
    // An Accept has no proof of its own: the dialler knows already who it talks to.
    dialler.feed(input).map(drop)
}

fn never_agrees(step: Step) -> Result<(), HandshakeError> {
    assert!(!matches!(step, Step::Done(..)), "agreed without a proof");
    Ok(())
}

fn credentials() -> (Keyring, Credential) {
    let secret = Secret::from_bytes([7; 32]);
    let keyring = Keyring::new();
    keyring.insert("a", 0, secret.clone());
    let ticket = Ticket {
        application: "a".into(),
        role: Role::Client,
        client_id: 0,
        expires_unix_ms: 1,
        key_id: 0,
    };
    let credential = Credential::issue(&secret, &ticket);
    (keyring, credential)
}

fn local() -> Local {
    Local {
        identity: Identity {
            application: "a".into(),
            name: "".into(),
            incarnation: Incarnation(0),
            client_id: 0,
        },
        caps: Capabilities::default(),
        nonce: [0; 16],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_wait(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            fuzz_handshake(&bytes);
        }

        #[test]
        fn any_bytes_are_a_header_or_not(kind in 0..12_u8, bytes: [u8; 31]) {
            let mut header = vec![kind];
            header.extend(bytes);
            fuzz_frame(&header);
        }

        /// One byte of Hello, Challenge or Proof is changed on the way: no channel comes of it.
        #[test]
        fn a_changed_byte_is_noticed(
            which in 0..3_usize,
            at: prop::sample::Index,
            change in 1..=255_u8,
        ) {
            prop_assert!(handshake_tampered(which, at, change).is_err());
        }
    }

    fn handshake_tampered(
        which: usize,
        at: prop::sample::Index,
        change: u8,
    ) -> Result<(), HandshakeError> {
        let (keyring, credential) = credentials();
        let tamper = |message: usize, mut bytes: Vec<u8>| {
            if message == which {
                let at = at.index(bytes.len() - 2) + 2;
                bytes[at] ^= change;
            }
            bytes
        };
        let (hello, mut dialler) = Dialler::start(local(), &credential, Incarnation(0), HostId(0));
        let mut listener = Listener::start(local(), HostId(0), Vec::new());
        let (_, step) = listener.feed(&tamper(0, hello), Some(&keyring), 0)?;
        let Step::Send(challenge) = step else {
            return Err(crate::wire::WireError::Malformed { what: "waits" }.into());
        };
        let (_, step) = dialler.feed(&tamper(1, challenge))?;
        let Step::Send(proof) = step else {
            return Err(crate::wire::WireError::Malformed { what: "waits" }.into());
        };
        listener
            .feed(&tamper(2, proof), Some(&keyring), 0)
            .map(drop)
    }
}
