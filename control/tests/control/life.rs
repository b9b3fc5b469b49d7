//! The life of processes through HTTP and an agent, across restarts of the control plane.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use praas_control::api::ProcessState;
use praas_control::store::StoreError;
use praas_control::{
    Control, ControlAddr, ControlConfig, ControlError, ErrorKind, NoGateway, RunPaths,
};

use super::fake_agent::FakeAgent;
use super::{Lab, eventually, spec};

#[test]
fn a_process_is_created_found_and_known_after_a_restart() {
    let mut lab = Lab::new();
    let agent = lab.agent("n");
    let client = lab.client();
    let application = client.application_create(&spec("a")).unwrap();
    let process = client.process_create("a", "p").unwrap();
    assert_eq!(process.state, ProcessState::Ready);
    let start = agent.started();
    assert_eq!(
        (start.application.as_str(), start.process.as_str()),
        ("a", "p")
    );
    assert_eq!(start.modules, ["/m.so"]);
    assert_eq!(start.incarnation, process.incarnation);
    let resolved = agent.resolve("a", "p", false).unwrap();
    assert_eq!(resolved.incarnation, process.incarnation);
    assert_eq!(resolved.addresses, process.addresses);
    assert_eq!(
        client.process_list("a").unwrap(),
        std::slice::from_ref(&process)
    );
    let world = client.world_show("a").unwrap();
    assert_eq!(world.members.len(), 1);
    agent.world("a", world.generation);

    lab.restart();
    let hosts = agent.end();
    let client = lab.client();
    assert_eq!(client.application_list().unwrap(), [application]);
    let found = client.process_show("a", "p").unwrap();
    assert_eq!(found.state, ProcessState::Ready);
    assert_eq!(found.incarnation, process.incarnation);
    assert!(!found.confirmed, "nobody vouches for it yet");

    let agent = FakeAgent::dial(&lab.paths, "n", hosts);
    lab.connected("n");
    assert_eq!(
        client.process_list("a").unwrap(),
        std::slice::from_ref(&process)
    );
    let resolved = agent.resolve("a", "p", true).unwrap();
    assert_eq!(
        resolved.incarnation, process.incarnation,
        "not started anew"
    );
    agent.end();
}

#[test]
fn a_process_goes_through_its_life() {
    let lab = Lab::new();
    let agent = lab.agent("n");
    let client = lab.client();
    client.application_create(&spec("a")).unwrap();
    let first = client.process_create("a", "p").unwrap();
    let swapped = client.process_swap("a", "p").unwrap();
    assert_eq!(swapped.state, ProcessState::Swapped);
    assert_eq!(swapped.swap_generation, 1);
    let error = agent.resolve("a", "p", false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    let resolved = agent.resolve("a", "p", true).unwrap();
    assert!(resolved.incarnation > first.incarnation);
    let stopped = client.process_stop("a", "p").unwrap();
    assert_eq!(stopped.state, ProcessState::Gone);
    client.process_delete("a", "p").unwrap();
    let error = client.process_show("a", "p").unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::NotFound));
    client.application_delete("a").unwrap();
    assert_eq!(client.application_list().unwrap(), []);
    agent.end();
}

#[test]
fn a_shutdown_in_good_order_leaves_no_address() {
    let mut lab = Lab::new();
    lab.client().application_create(&spec("a")).unwrap();
    lab.control.take().unwrap().shutdown();
    assert!(ControlAddr::read(&lab.paths.control_addr).is_err());
    lab.restart();
    assert_eq!(lab.client().application_list().unwrap().len(), 1);
}

#[test]
fn two_do_not_share_a_directory_or_an_address() {
    let lab = Lab::new();
    let start = |config, paths: &RunPaths| Control::start(config, Arc::new(NoGateway), paths);
    let error = start(ControlConfig::default(), &lab.paths).unwrap_err();
    assert!(
        matches!(error, ControlError::Store(StoreError::Locked { .. })),
        "{error:?}"
    );
    assert_eq!(
        lab.client().health().unwrap().status,
        "ok",
        "the first goes on"
    );
    let other = tempfile::tempdir().unwrap();
    let config = ControlConfig {
        http_listen: lab.control.as_ref().unwrap().http_addr(),
        ..ControlConfig::default()
    };
    let error = start(config, &RunPaths::in_dir(other.path())).unwrap_err();
    assert!(matches!(error, ControlError::Listen { .. }), "{error:?}");
}

#[test]
fn a_lost_administrators_token_is_replaced_at_the_next_start() {
    let mut lab = Lab::new();
    let read = |lab: &Lab| std::fs::read_to_string(&lab.paths.admin_token).unwrap();
    let first = read(&lab);
    lab.restart();
    assert_eq!(read(&lab), first);
    std::fs::remove_file(&lab.paths.admin_token).unwrap();
    lab.restart();
    assert_ne!(read(&lab), first);
    let mode = std::fs::metadata(&lab.paths.admin_token)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(lab.client().token_list().unwrap().len(), 2);
    std::fs::write(&lab.paths.admin_token, "of another cluster").unwrap();
    lab.restart();
    assert_eq!(lab.client().token_list().unwrap().len(), 3);
}

#[test]
fn an_agent_without_the_clusters_secret_is_refused() {
    let lab = Lab::new();
    let other = tempfile::tempdir().unwrap();
    let paths = RunPaths {
        cluster_secret: other.path().join("cluster.secret"),
        ..lab.paths.clone()
    };
    FakeAgent::dial(&paths, "n", Vec::new()).refused();
    assert_eq!(lab.client().node_list().unwrap(), []);
}

#[test]
fn a_silent_nodes_process_starts_elsewhere_after_the_lease() {
    let config = ControlConfig {
        lease_ms: 100,
        ..ControlConfig::default()
    };
    let lab = Lab::with(config, Arc::new(NoGateway));
    let agent = lab.agent("n");
    let client = lab.client();
    client.application_create(&spec("a")).unwrap();
    let first = client.process_create("a", "p").unwrap();
    agent.end();
    eventually(|| client.process_show("a", "p").unwrap().state == ProcessState::Failed);
    let other = lab.agent("m");
    let resolved = other.resolve("a", "p", true).unwrap();
    assert!(resolved.incarnation > first.incarnation);
    other.end();
}
