//! A user's way in: the control plane over HTTP, and clients of the data plane.

use std::io;
use std::path::PathBuf;

use praas_control::api::TicketSpec;
use praas_control::{ControlAddr, ControlClient};
use praas_runtime::client::{AsyncClient, Client, ClientConfig, Directory};
use praas_transport::Kinds;

use crate::run_dir::{AgentAddr, RunDir};

/// Why there is no way in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// No control plane was started there, or it was stopped.
    #[error("no control plane runs in {dir}: start one with `praas up`")]
    NotUp {
        /// The run directory.
        dir: PathBuf,
        /// What is missing.
        source: io::Error,
    },
    /// No agent was started there, or it was stopped.
    #[error("no agent runs in {dir}: start one with `praas up`")]
    NoAgent {
        /// The run directory.
        dir: PathBuf,
        /// What is missing.
        source: io::Error,
    },
    /// The token cannot be read.
    #[error("cannot read the token in {path}")]
    Token {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control plane refuses, or does not answer.
    #[error(transparent)]
    Control(#[from] praas_control::ClientError),
    /// A client of the data plane cannot be made.
    #[error(transparent)]
    Client(#[from] praas_runtime::client::ClientError),
}

/// What a user's commands and programs work with.
#[derive(Debug)]
pub struct Session {
    /// The control plane.
    pub control: ControlClient,
    run_dir: RunDir,
}

impl Session {
    /// Finds the control plane of a run directory, with the administrator's token there.
    ///
    /// # Errors
    /// None runs there, or the token cannot be read. Whether it answers is found out by a call.
    pub fn open(run_dir: &RunDir) -> Result<Self, SessionError> {
        let paths = run_dir.control();
        let address = ControlAddr::read(&paths.control_addr).map_err(|source| {
            let dir = run_dir.root().into();
            SessionError::NotUp { dir, source }
        })?;
        let token = std::fs::read_to_string(&paths.admin_token);
        let token = token.map_err(|source| SessionError::Token {
            path: paths.admin_token.clone(),
            source,
        })?;
        Ok(Self {
            control: ControlClient::new(&address.http, token.trim()),
            run_dir: run_dir.clone(),
        })
    }

    /// The run directory.
    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// The settings of a client of an application: a fresh ticket, and the agent's directory.
    /// Only `transports` are used.
    ///
    /// # Errors
    /// No agent runs, or the control plane issues no ticket.
    pub fn client_config(
        &self,
        application: &str,
        transports: Kinds,
    ) -> Result<ClientConfig, SessionError> {
        let agent = AgentAddr::read(&self.run_dir.agent_addr()).map_err(|source| {
            let dir = self.run_dir.root().into();
            SessionError::NoAgent { dir, source }
        })?;
        let ticket = self.control.ticket_issue(&TicketSpec {
            application: Some(application.into()),
            client_id: None,
            valid_ms: None,
        })?;
        let mut config = ClientConfig::new(Directory::Agent(agent.directory), ticket.credential);
        config.transports = transports;
        Ok(config)
    }

    /// A client that blocks.
    ///
    /// # Errors
    /// As [`Session::client_config`]; the endpoint cannot be made.
    pub fn client(&self, application: &str, transports: Kinds) -> Result<Client, SessionError> {
        Ok(Client::new(self.client_config(application, transports)?)?)
    }

    /// A client for tokio.
    ///
    /// # Errors
    /// As [`Session::client`].
    pub fn client_async(
        &self,
        application: &str,
        transports: Kinds,
    ) -> Result<AsyncClient, SessionError> {
        Ok(AsyncClient::new(
            self.client_config(application, transports)?,
        )?)
    }
}
