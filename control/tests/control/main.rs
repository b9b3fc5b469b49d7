//! The control plane as a whole: real sockets, a real database, an agent without hosts.

mod fake_agent;
mod http;
mod killed;
mod life;
mod openapi;

use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_control::api::{ApplicationSpec, Settings};
use praas_control::{
    Control, ControlAddr, ControlClient, ControlConfig, ControlHandle, Gateway, NoGateway, RunPaths,
};
use tempfile::TempDir;

use fake_agent::{FakeAgent, PATIENCE};

/// A control plane in a directory of its own.
struct Lab {
    paths: RunPaths,
    config: ControlConfig,
    gateway: Arc<dyn Gateway>,
    control: Option<ControlHandle>,
    _dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::with(ControlConfig::default(), Arc::new(NoGateway))
    }

    fn with(config: ControlConfig, gateway: Arc<dyn Gateway>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = RunPaths::in_dir(dir.path());
        let mut lab = Self {
            paths,
            config,
            gateway,
            control: None,
            _dir: dir,
        };
        lab.restart();
        lab
    }

    /// Ends the control plane, without grace, and starts another on its files.
    fn restart(&mut self) {
        drop(self.control.take());
        let gateway = Arc::clone(&self.gateway);
        let control = Control::start(self.config.clone(), gateway, &self.paths);
        self.control = Some(control.expect("it starts"));
    }

    fn url(&self) -> String {
        let address = ControlAddr::read(&self.paths.control_addr);
        address.expect("control.addr").http
    }

    /// A client with the administrator's token.
    fn client(&self) -> ControlClient {
        let token = std::fs::read_to_string(&self.paths.admin_token).expect("admin.token");
        ControlClient::new(&self.url(), token.trim()).with_wait(PATIENCE)
    }

    fn agent(&self, node: &str) -> FakeAgent {
        let agent = FakeAgent::dial(&self.paths, node, Vec::new());
        self.connected(node);
        agent
    }

    /// Waits until the agent of a node is connected.
    fn connected(&self, node: &str) {
        let client = self.client();
        eventually(|| {
            let nodes = client.node_list().expect("nodes");
            nodes.iter().any(|n| n.name == node && n.connected)
        });
    }
}

/// Waits until `holds`, with a deadline.
fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it does not happen in time");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn spec(name: &str) -> ApplicationSpec {
    ApplicationSpec {
        name: name.into(),
        modules: vec!["/m.so".into()],
        settings: Settings::new(),
        auto_create: false,
    }
}
