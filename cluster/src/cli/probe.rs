//! Whether a transport can be used here: one endpoint listens, another connects to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_transport::{
    ChannelId, ChannelInfo, CloseReason, Credential, Dial, Disposition, Endpoint, Flow, Handler,
    Identity, Incarnation, Incoming, Keyring, LargeMessage, Listen, Message, Ops, Role, Secret,
    SendFailure, Ticket, TransportConfig, TransportKind, UnixPlace, WaitMode,
};

/// How long the two may take to find each other.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one of them waits before the other has its turn.
const TURN: Duration = Duration::from_millis(1);
const APPLICATION: &str = "_probe";

/// What became of the channel.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) open: Option<ChannelInfo>,
    pub(super) closed: Option<CloseReason>,
}

impl Handler for Seen {
    fn on_open(&mut self, _: &mut Ops, _: ChannelId, info: &ChannelInfo) -> Flow {
        self.open = Some(info.clone());
        Flow::Continue
    }

    fn on_message(&mut self, _: &mut Ops, _: ChannelId, _: Message<'_>) -> Flow {
        Flow::Continue
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_sent(
        &mut self,
        _: &mut Ops,
        _: ChannelId,
        _: u64,
        _: praas_transport::Buf,
        _: Result<(), SendFailure>,
    ) -> Flow {
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        self.closed = Some(reason);
        Flow::Continue
    }
}

/// What a channel of this transport is like here.
///
/// # Errors
/// Why there can be none.
pub fn probe(transport: TransportKind) -> Result<String, String> {
    let said = |error: &dyn std::error::Error| {
        let source = error.source().map(|source| format!(": {source}"));
        format!("{error}{}", source.unwrap_or_default())
    };
    let ports = match transport {
        TransportKind::Verbs => {
            let ports = praas_transport::rdma_describe(&TransportConfig::default())?;
            format!("{ports}; ")
        }
        _ => String::new(),
    };
    let secret = Secret::generate().map_err(|error| error.to_string())?;
    let ticket = Ticket {
        application: APPLICATION.into(),
        role: Role::Client,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: 1,
    };
    let credential = Credential::issue(&secret, &ticket);
    let keyring = Keyring::new();
    keyring.insert(APPLICATION, 1, secret);
    let endpoint = |client_id, auth| {
        let identity = Identity {
            application: APPLICATION.into(),
            name: "".into(),
            incarnation: Incarnation(0),
            client_id,
        };
        Endpoint::new(TransportConfig::default(), identity, auth).map_err(|error| said(&error))
    };
    let mut server = endpoint(1, Some(Arc::new(keyring) as _))?;
    let mut client = endpoint(2, None)?;
    let listen = match transport {
        TransportKind::Mem => Listen::Mem(APPLICATION.into()),
        TransportKind::Shm => Listen::Shm { name: None },
        TransportKind::Unix => Listen::Unix(UnixPlace::Abstract(None)),
        TransportKind::Verbs => Listen::Verbs(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
        TransportKind::Tcp => Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
    };
    let address = server.listen(&listen).map_err(|error| said(&error))?;
    let dial = Dial {
        credential,
        expect: Incarnation(0),
        deadline: None,
    };
    client
        .connect(&address, dial)
        .map_err(|error| said(&error))?;
    let (mut ours, mut theirs) = (Seen::default(), Seen::default());
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        for (endpoint, seen) in [(&mut client, &mut ours), (&mut server, &mut theirs)] {
            endpoint.progress_wait(seen, Some(Instant::now() + TURN), WaitMode::Warm);
        }
        if let Some(why) = ours.closed {
            return Err(why.to_string());
        }
        if let Some(info) = ours.open {
            let large = match transport {
                TransportKind::Shm => {
                    let large = praas_transport::shm_describe(&TransportConfig::default());
                    format!("; {large}")
                }
                _ => String::new(),
            };
            return Ok(format!(
                "{ports}eager up to {} bytes{large}",
                info.eager_max
            ));
        }
    }
    Err(format!("no channel within {PATIENCE:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_and_shared_memory_are_there_wherever_tests_run() {
        let detail = probe(TransportKind::Tcp).unwrap();
        assert!(detail.starts_with("eager up to"), "{detail}");
        let detail = probe(TransportKind::Shm).unwrap();
        assert!(detail.contains("private memory is"), "{detail}");
    }
}
