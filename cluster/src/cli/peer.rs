//! `praas info --peer`: which of a peer's addresses would be used, and why not the others.
//!
//! Every candidate that may be used is tried for real: a handshake, to its end.

use std::time::{Duration, Instant};

use praas_transport::{
    Address, CloseReason, Credential, Dial, Endpoint, Identity, Incarnation, Kinds, RefuseReason,
    Role, Secret, Ticket, TransportConfig, WaitMode, addresses_rank,
};
use serde::Serialize;

use super::Context;
use super::error::CliError;
use super::output::table;
use super::probe::Seen;

/// What became of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It is the one that would be used.
    Chosen,
    /// It works, and a better one does, too.
    Spare,
    /// It cannot be used.
    Rejected,
}

#[derive(Debug, Serialize)]
struct Candidate {
    address: Address,
    verdict: Verdict,
    detail: String,
}

/// The answer.
#[derive(Debug, Serialize)]
struct PeerInfo {
    peer: String,
    /// The transports that the settings allow.
    allowed: Kinds,
    candidates: Vec<Candidate>,
}

/// Explains the choice for addresses, with commas between, or a process, APP/PROCESS.
pub fn peer(context: &Context, what: &str) -> Result<(), CliError> {
    let settings = context.config()?.client;
    let (addresses, credential) = peer_find(context, what)?;
    let allowed = settings.transports_allowed();
    let ranked = addresses_rank(&addresses, allowed);
    let mut candidates = Vec::new();
    let mut found = false;
    for address in &ranked.usable {
        let tried = address_try(&settings.transport, address, &credential);
        let verdict = match (&tried, found) {
            (Ok(_), false) => Verdict::Chosen,
            (Ok(_), true) => Verdict::Spare,
            (Err(_), _) => Verdict::Rejected,
        };
        found |= tried.is_ok();
        candidates.push(Candidate {
            address: (*address).clone(),
            verdict,
            detail: tried.unwrap_or_else(|why| why),
        });
    }
    candidates.extend(ranked.rejected.iter().map(|(address, why)| Candidate {
        address: (*address).clone(),
        verdict: Verdict::Rejected,
        detail: why.clone(),
    }));
    let info = PeerInfo {
        peer: what.into(),
        allowed,
        candidates,
    };
    context.output.answer(&info, || words(&info))
}

fn words(info: &PeerInfo) -> String {
    let row = |candidate: &Candidate| {
        let verdict = match candidate.verdict {
            Verdict::Chosen => "chosen",
            Verdict::Spare => "spare",
            Verdict::Rejected => "rejected",
        };
        let address = candidate.address.to_string();
        vec![verdict.into(), address, candidate.detail.clone()]
    };
    let rows: Vec<_> = info.candidates.iter().map(row).collect();
    let table = table(&["VERDICT", "ADDRESS", "DETAIL"], &rows);
    let text = format!(
        "peer       {}\nallowed    {}\n\n{table}",
        info.peer, info.allowed
    );
    text.trim_end().into()
}

/// Where the peer listens, and what to show to it. Whoever listens at bare addresses will not know
/// us: its refusal shows as well that it can be reached.
fn peer_find(context: &Context, what: &str) -> Result<(Vec<Address>, Credential), CliError> {
    if what.contains(':') {
        let addresses: Result<Vec<Address>, _> = what.split(',').map(str::parse).collect();
        let addresses = addresses.map_err(CliError::bad)?;
        let secret = Secret::generate();
        let secret = secret.map_err(|error| CliError::new("cannot make a credential", error))?;
        let ticket = Ticket {
            application: "_info".into(),
            role: Role::Client,
            client_id: 0,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        return Ok((addresses, Credential::issue(&secret, &ticket)));
    }
    let Some((application, process)) = what.split_once('/') else {
        let text = format!("'{what}' is no peer: use an address, several, or APP/PROCESS");
        return Err(CliError::usage(text));
    };
    let session = context.session()?;
    let shown = session.control.process_show(application, process);
    let addresses = shown.map_err(CliError::of)?.addresses;
    if addresses.is_empty() {
        let text = format!("{what} does not run, so it has no address");
        return Err(CliError::text(text));
    }
    let config = session.client_config(application, Kinds::all())?;
    Ok((addresses, config.credential))
}

/// Connects to an address and closes again.
///
/// # Errors
/// Why it cannot be used.
fn address_try(
    config: &TransportConfig,
    address: &Address,
    credential: &Credential,
) -> Result<String, String> {
    let ticket = Ticket::decode(&credential.ticket).map_err(|error| error.to_string())?;
    let identity = Identity {
        application: ticket.application,
        name: "".into(),
        incarnation: Incarnation(0),
        client_id: ticket.client_id.max(1),
    };
    let mut endpoint =
        Endpoint::new(config.clone(), identity, None).map_err(|error| error.to_string())?;
    let dial = Dial {
        credential: credential.clone(),
        expect: Incarnation(0),
        deadline: None,
    };
    let begun = Instant::now();
    let channel = endpoint
        .connect(address, dial)
        .map_err(|error| error.to_string())?;
    let mut seen = Seen::default();
    // The endpoint's own deadline ends the handshake before.
    let until = begun + Duration::from_millis(2 * config.handshake_timeout_ms);
    while Instant::now() < until {
        endpoint.progress_wait(&mut seen, Some(until), WaitMode::Warm);
        let took = begun.elapsed().as_micros();
        if let Some(info) = &seen.open {
            let eager = info.eager_max;
            endpoint.close(channel);
            return Ok(format!("open in {took} µs; eager up to {eager} bytes"));
        }
        match seen.closed.take() {
            Some(CloseReason::Refused { reason, text })
                if !matches!(reason, RefuseReason::WrongUser | RefuseReason::NoSegment) =>
            {
                return Ok(format!("reached in {took} µs; refused: {reason}: {text}"));
            }
            Some(reason) => return Err(reason.to_string()),
            None => {}
        }
    }
    Err("no answer".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use praas_transport::Listen;

    fn credential() -> Credential {
        let ticket = Ticket {
            application: "a".into(),
            role: Role::Client,
            client_id: 0,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        Credential::issue(&Secret::generate().unwrap(), &ticket)
    }

    #[test]
    fn whoever_refuses_is_reached_and_nobody_is_not() {
        let config = TransportConfig::default();
        let identity = Identity {
            application: "a".into(),
            name: "".into(),
            incarnation: Incarnation(0),
            client_id: 9,
        };
        let mut server = Endpoint::new(config.clone(), identity, None).unwrap();
        let loopback = Listen::Tcp(([127, 0, 0, 1], 0).into());
        let address = server.listen(&loopback).unwrap();
        std::thread::scope(|scope| {
            let tried = scope.spawn(|| address_try(&config, &address, &credential()));
            while !tried.is_finished() {
                let soon = Instant::now() + Duration::from_millis(1);
                server.progress_wait(&mut Seen::default(), Some(soon), WaitMode::Warm);
            }
            let detail = tried.join().unwrap().unwrap();
            assert!(
                detail.contains("accepts nobody") || detail.contains("refused"),
                "{detail}"
            );
        });
        drop(server);
        address_try(&config, &address, &credential()).unwrap_err();
    }
}
