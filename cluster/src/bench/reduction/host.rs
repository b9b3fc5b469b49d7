//! A module in a process of its own: this program again, which loads it and serves until whoever
//! started it hangs up.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use praas_runtime::client::{CallOptions, Client, ClientConfig, Directory, FunctionRef};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::process::{Process, Restore, StartError};
use praas_runtime::swap::{Heir, StorageUrl, swap_in_lazily};
use praas_transport::{
    BufPool, Incarnation, Keyring, Role, Secret, TransportConfig, TransportKind, WaitMode,
};
use serde::{Deserialize, Serialize};

use super::MODULE_PEER_COMMAND;
use crate::bench::BenchError;
use crate::bench::control::{Answer, Control, LINE_PATIENCE};
use crate::bench::peer::{self, APPLICATION, KEY_ID, PROCESS};
use crate::storage::storage_open;

/// What the process needs to know: the first line.
#[derive(Debug, Serialize, Deserialize)]
struct Setup {
    module: Option<PathBuf>,
    transport: TransportKind,
    cpu: Option<usize>,
    config: TransportConfig,
    key: [u8; 32],
    swapped: Option<Swapped>,
}

/// Where a process's state is that it begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Swapped {
    /// The storage.
    pub(in crate::bench) url: String,
    /// Bytes of objects from which on they come later.
    pub(in crate::bench) lazy_min_bytes: u64,
}

/// The process's part.
///
/// # Errors
/// See [`BenchError`].
pub(in crate::bench) fn serve() -> Result<(), BenchError> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = socket.map_err(BenchError::system("use standard input"))?;
    let mut control = Control::new(socket);
    let setup: Setup = control.read()?;
    match process_start(&setup) {
        Err(error) => control.write(&Answer::<Resolved>::No(error.to_string())),
        Ok(process) => {
            control.write(&Answer::Yes(Resolved {
                incarnation: peer::INCARNATION,
                addresses: process.addresses().to_vec(),
            }))?;
            control.end_wait();
            Ok(())
        }
    }
}

fn process_start(setup: &Setup) -> Result<Process, BenchError> {
    let ring = Arc::new(Keyring::new());
    ring.insert(APPLICATION, KEY_ID, Secret::from_bytes(setup.key));
    let mut registry = Registry::new();
    if let Some(module) = &setup.module {
        let loaded = registry.module_load(module);
        loaded.map_err(|error| BenchError::Peer(error.to_string()))?;
    }
    peer::functions_add(&mut registry)?;
    peer::pin(setup.cpu)?;
    let listen = peer::listen_at(setup.transport, IpAddr::V4(Ipv4Addr::LOCALHOST));
    // Several of them share a CPU, by turns: who is not called sleeps.
    let config = peer::process_config(
        registry,
        setup.config.clone(),
        WaitMode::Adaptive,
        listen,
        ring,
        peer::credential(setup.key, Role::Process),
    );
    let started = Process::start_from(config, |pool| match &setup.swapped {
        Some(swapped) => swapped.restore(pool).map(Some),
        None => Ok(None),
    });
    started.map_err(peer::start_error)
}

impl Swapped {
    /// Loads what is there, as a host does.
    fn restore(&self, pool: &BufPool) -> Result<Restore, StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Restore(error.to_string());
        let url: StorageUrl = self.url.parse().map_err(|error| failed(&error))?;
        let storage = storage_open(&url).map_err(|error| failed(&error))?;
        let name = (peer::APPLICATION, peer::PROCESS);
        // Nothing is written through, so it takes nothing from anybody.
        let heir = Heir {
            incarnation: Incarnation(u64::MAX),
            life: Incarnation(0),
        };
        let loaded = swap_in_lazily(&storage, pool, name, heir, self.lazy_min_bytes);
        let loaded = loaded.map_err(|error| failed(&error))?;
        let (loaded, absent) = loaded.ok_or_else(|| failed(&"there is no image"))?;
        let image = loaded.image;
        Ok(Restore {
            image,
            absent,
            base: None,
        })
    }
}

/// A process of its own, and a client of it.
pub(in crate::bench) struct ProcessBeside {
    client: Client,
    child: Child,
    control: Control,
}

impl ProcessBeside {
    /// Starts it, with a module or without.
    pub(in crate::bench) fn start(
        module: Option<&Path>,
        transport: TransportKind,
        cpu: Option<usize>,
        config: &TransportConfig,
    ) -> Result<Self, BenchError> {
        Self::start_from(module, transport, cpu, config, None)
    }

    /// Starts it with what was swapped out.
    pub(in crate::bench) fn start_from(
        module: Option<&Path>,
        transport: TransportKind,
        cpu: Option<usize>,
        config: &TransportConfig,
        swapped: Option<Swapped>,
    ) -> Result<Self, BenchError> {
        let key = Secret::generate().map_err(|error| BenchError::Secret(error.to_string()))?;
        let key = *key.as_bytes();
        let pair = UnixStream::pair().map_err(BenchError::system("make a pair of sockets"))?;
        // This very program, also when its file was replaced since it started.
        let child = Command::new("/proc/self/exe")
            .arg0("praas")
            .arg(MODULE_PEER_COMMAND)
            .stdin(Stdio::from(OwnedFd::from(pair.1)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(BenchError::system("start this program again"))?;
        let mut child = Ending(Some(child));
        let mut control = Control::new(pair.0.into());
        control.patience_set(LINE_PATIENCE)?;
        control.write(&Setup {
            module: module.map(Into::into),
            transport,
            cpu,
            config: config.clone(),
            key,
            swapped,
        })?;
        let place: Resolved = control.answer()?;
        let directory = Directory::Fixed(BTreeMap::from([(PROCESS.to_owned(), place)]));
        let mut client = ClientConfig::new(directory, peer::credential(key, Role::Client));
        client.wait = WaitMode::Adaptive;
        client.transport = config.clone();
        client.transports = transport.into();
        let client = Client::new(client)?;
        let child = child
            .0
            .take()
            .ok_or_else(|| BenchError::Peer("has ended".into()))?;
        Ok(Self {
            client,
            child,
            control,
        })
    }

    pub(in crate::bench) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    pub(in crate::bench) fn function(
        &mut self,
        name: &'static str,
    ) -> Result<FunctionRef, BenchError> {
        let found = self.client.function(PROCESS, name);
        found.map_err(|source| BenchError::Invoke {
            function: name,
            source,
        })
    }
}

impl Drop for ProcessBeside {
    fn drop(&mut self) {
        self.control.end();
        child_end(&mut self.child);
    }
}

/// A module in a process, as who calls it sees it.
pub(super) struct Host {
    process: ProcessBeside,
    add: FunctionRef,
    sum: FunctionRef,
    clear: FunctionRef,
}

impl Host {
    /// Starts it, and calls it once.
    pub(super) fn start(
        module: &Path,
        transport: TransportKind,
        cpu: Option<usize>,
        config: &TransportConfig,
    ) -> Result<Self, BenchError> {
        let mut process = ProcessBeside::start(Some(module), transport, cpu, config)?;
        let add = process.function("add")?;
        let sum = process.function("sum")?;
        let clear = process.function("clear")?;
        let mut host = Self {
            process,
            add,
            sum,
            clear,
        };
        host.clear()?;
        Ok(host)
    }

    fn call(
        &mut self,
        name: &'static str,
        function: FunctionRef,
        input: &[u8],
    ) -> Result<praas_runtime::invocation::Payload, BenchError> {
        let called = self
            .process
            .client
            .call(function, input, CallOptions::default());
        called.map_err(|source| BenchError::Invoke {
            function: name,
            source,
        })
    }

    pub(super) fn add(&mut self, vector: &[u8]) -> Result<(), BenchError> {
        self.call("add", self.add, vector).map(|_| ())
    }

    pub(super) fn sum(&mut self) -> Result<Vec<u8>, BenchError> {
        Ok(self.call("sum", self.sum, b"")?.to_vec())
    }

    pub(super) fn clear(&mut self) -> Result<(), BenchError> {
        self.call("clear", self.clear, b"").map(|_| ())
    }
}

/// Ends a process that was started before what it is for has failed.
struct Ending(Option<Child>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child_end(child);
        }
    }
}

/// It may have ended by itself, which is as good.
pub(super) fn child_end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
