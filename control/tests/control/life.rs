//! The life of processes through HTTP and an agent, across restarts of the control plane.

use praas_control::api::ProcessState;
use praas_control::{ControlAddr, ErrorKind};

use super::fake_agent::{FakeAgent, Seen};
use super::{Lab, spec};

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
    agent.wait(|seen| match seen {
        Seen::World(application, generation) => {
            (application == "a" && generation == world.generation).then_some(())
        }
        _ => None,
    });

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
