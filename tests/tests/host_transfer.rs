//! Transfers between hosts whose agent is the test.

use praas_runtime::client::Client;
use praas_runtime::host::{FromHost, HostFrom, HostStart, HostTransfer, ToHost};
use praas_tests::lab::{Lab, LabHost};
use praas_transport::TransportKind;

const TOKEN: [u8; 16] = [7; 16];

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

fn count(client: &mut Client) -> u64 {
    client.invoke_value("p", "counts", &()).unwrap()
}

#[track_caller]
fn expect(host: &mut LabHost, wanted: HostTransfer) -> Option<String> {
    match host.hear() {
        Some(FromHost::Transfer { state, error }) if state == wanted => error,
        other => panic!("{other:?}, not {wanted:?}: {}", host.log_text()),
    }
}

/// Lets a host fetch the process, and begins with one.
fn offer(lab: &Lab, source: &mut LabHost) -> HostStart {
    let start = lab.host_start("p");
    let from = HostFrom {
        addresses: source.addresses.clone(),
        incarnation: start.incarnation - 1,
        token: TOKEN,
    };
    source.say(&ToHost::TransferOut {
        incarnation: start.incarnation,
        token: TOKEN,
    });
    expect(source, HostTransfer::Sending);
    HostStart {
        from: Some(from),
        ..start
    }
}

/// A source that is frozen, and a target that has everything.
fn frozen(lab: &Lab) -> (LabHost, LabHost) {
    let mut source = lab.start("p");
    count(&mut lab.client(TransportKind::Shm));
    let start = offer(lab, &mut source);
    let mut target = lab.spawn(&start);
    target.say(&ToHost::Start(Box::new(start)));
    expect(&mut target, HostTransfer::Receiving);
    expect(&mut source, HostTransfer::Frozen);
    expect(&mut target, HostTransfer::Prepared);
    (source, target)
}

#[test]
fn a_source_ends_that_finds_an_image_of_the_host_it_is_frozen_for() {
    let lab = lab();
    let (mut source, mut target) = frozen(&lab);
    target.say(&ToHost::TransferServe);
    assert!(matches!(target.hear(), Some(FromHost::Ready { .. })));
    assert_eq!(target.swap_out(), Ok(1));
    // Its own image would be older.
    source.say(&ToHost::SwapOut);
    match source.hear() {
        Some(FromHost::Failed { error }) => assert!(error.contains("fenced"), "{error}"),
        other => panic!("{other:?}: {}", source.log_text()),
    }
    assert_eq!(source.end_wait().code(), Some(0));
    assert_eq!(lab.leftovers(), [""; 0]);
}

#[test]
fn a_target_that_has_to_end_before_it_is_the_process_loses_nothing() {
    let lab = lab();
    let (mut source, mut target) = frozen(&lab);
    target.signal(rustix::process::Signal::TERM);
    match target.hear() {
        Some(FromHost::Failed { error }) => assert!(error.contains("SIGTERM"), "{error}"),
        other => panic!("{other:?}: {}", target.log_text()),
    }
    assert_eq!(target.end_wait().code(), Some(0));
    source.say(&ToHost::TransferThaw);
    expect(&mut source, HostTransfer::None);
    assert_eq!(count(&mut lab.client(TransportKind::Shm)), 2);
    assert_eq!(source.swap_out(), Ok(1));
}

#[test]
fn a_host_that_serves_on_after_all_has_to_do_with_no_transfer() {
    let lab = lab();
    let mut source = lab.start("p");
    offer(&lab, &mut source);
    let dir = lab.swap_dir();
    if dir.exists() {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    std::fs::write(&dir, "no directory").unwrap();
    source.say(&ToHost::SwapOut);
    assert!(expect(&mut source, HostTransfer::None).is_some());
    assert!(matches!(source.hear(), Some(FromHost::SwapFailed { .. })));
    assert_eq!(count(&mut lab.client(TransportKind::Shm)), 1);
}
