//! What was acknowledged over HTTP is there after a kill -9, whenever it comes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use praas_control::api::{TokenRole, TokenSpec};
use praas_control::{Control, ControlAddr, ControlClient, ControlConfig, NoGateway, RunPaths};

use praas_transport::sync::atomic::{AtomicUsize, Ordering};

use super::{eventually, spec};

/// Tells the child its run directory.
const CHILD_DIR: &str = "PRAAS_TEST_CONTROL_DIR";

/// Not a test: the control plane that is killed. Does nothing unless it is told where.
#[test]
fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let paths = RunPaths::in_dir(dir);
    let control = Control::start(ControlConfig::default(), Arc::new(NoGateway), &paths);
    let _control = control.expect("it starts");
    loop {
        std::thread::park();
    }
}

/// A child that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may be dead already; whether it is, the wait tells.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn child_start(dir: &Path) -> Killed {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "killed::child_that_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    Killed(child.expect("the child starts"))
}

fn client(paths: &RunPaths) -> ControlClient {
    let address = ControlAddr::read(&paths.control_addr).expect("control.addr");
    let token = std::fs::read_to_string(&paths.admin_token).expect("admin.token");
    ControlClient::new(&address.http, token.trim())
}

/// Creates applications until the control plane is no more; those that were acknowledged.
fn create_until_the_end(paths: &RunPaths, who: usize, count: &AtomicUsize) -> Vec<String> {
    let client = client(paths);
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let name = format!("a-{who}-{number}");
        match client.application_create(&spec(&name)) {
            Ok(_) => acknowledged.push(name),
            Err(_) => break,
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    acknowledged
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let paths = RunPaths::in_dir(dir.path());
    let mut child = child_start(dir.path());
    eventually(|| ControlAddr::read(&paths.control_addr).is_ok());
    let role = TokenRole::Admin;
    let label = String::new();
    let token = client(&paths)
        .token_create(&TokenSpec { role, label })
        .unwrap();
    let count = AtomicUsize::new(0);
    let acknowledged: Vec<String> = std::thread::scope(|scope| {
        let creators: Vec<_> = (0..4)
            .map(|who| {
                scope.spawn({
                    let (paths, count) = (&paths, &count);
                    move || create_until_the_end(paths, who, count)
                })
            })
            .collect();
        eventually(|| count.load(Ordering::Relaxed) >= 40);
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        creators
            .into_iter()
            .flat_map(|creator| creator.join().unwrap())
            .collect()
    });
    assert!(acknowledged.len() >= 36);

    let admin_before = std::fs::read_to_string(&paths.admin_token).unwrap();
    let control = Control::start(ControlConfig::default(), Arc::new(NoGateway), &paths).unwrap();
    assert_eq!(
        std::fs::read_to_string(&paths.admin_token).unwrap(),
        admin_before
    );
    let url = format!("http://{}", control.http_addr());
    let found = ControlClient::new(&url, &token.token)
        .application_list()
        .unwrap();
    for name in &acknowledged {
        assert!(found.iter().any(|a| a.name == *name), "{name} is lost");
    }
    // Besides these there may be the ones whose answers the kill cut off, one of each creator.
    assert!(found.len() <= acknowledged.len() + 4);
    control.shutdown();
}
