//! What is asked of the registry: answered at once where it can be, else queued at the process.

use super::{Action, App, Entry, Key, Origin, Registry, Reply, Request, Verb, Waiter, Want};
use crate::agent::{ApplicationKey, ResolvedProcess, ToAgent};
use crate::api::{ApplicationSpec, ProcessState, name_check};
use crate::error::{ErrorKind, Failure};
use crate::policy::PolicySettings;
use crate::store::{ApplicationRecord, Change, ProcessRecord, TokenRecord};
use praas_transport::Secret;

impl Registry {
    pub(super) fn request(&mut self, now: u64, id: u64, wait_ms: u64, request: Request) {
        let origin = Origin::Api(id);
        let result = match request {
            Request::Process {
                application,
                process,
                verb,
            } => {
                let key = Key {
                    application,
                    process,
                };
                return self.process_request(now, origin, wait_ms, &key, verb);
            }
            Request::ProcessTransfer {
                application,
                process,
                to,
            } => {
                let key = Key {
                    application,
                    process,
                };
                return self.transfer_request(now, origin, wait_ms, &key, to);
            }
            Request::NodeDrain { node, undo } => self.node_drain(&node, undo),
            Request::ApplicationCreate {
                spec,
                secret,
                now_unix_ms,
            } => self.application_create(now, spec, secret, now_unix_ms),
            Request::ApplicationList => {
                let applications = self.apps.values().map(App::show).collect();
                Ok(Reply::Applications(applications))
            }
            Request::ApplicationShow(name) => {
                self.app(&name).map(|app| Reply::Application(app.show()))
            }
            Request::ApplicationDelete(name) => {
                return self.application_delete(now, origin, wait_ms, &name);
            }
            Request::KeyRevoke {
                application,
                secret,
            } => self.key_revoke(&application, secret),
            Request::KeyShow(name) => self
                .app(&name)
                .map(|app| Reply::Key(app.record.key_id, app.record.secret.clone())),
            Request::ProcessList(name) => self.app(&name).map(|app| {
                let shown = app.processes.values().map(|entry| entry.show(now));
                Reply::Processes(shown.collect())
            }),
            Request::NodeList => Ok(Reply::Nodes(self.nodes_show())),
            Request::NodeForget(node) => self.node_forget(&node),
            Request::WorldShow(name) => self.app(&name).map(|app| Reply::World(app.world())),
            Request::TokenCreate(token) => self.token_create(token),
            Request::TokenList => {
                let tokens = self.tokens.values().map(super::token_info).collect();
                Ok(Reply::Tokens(tokens))
            }
            Request::TokenDelete(id) => self.token_delete(&id),
        };
        self.answer(origin, result);
    }

    /// Tells who asked. Every request comes here once.
    pub(super) fn answer(&mut self, origin: Origin, result: Result<Reply, Failure>) {
        let action = match origin {
            Origin::Application(number) => return self.deletion_answered(number, result),
            Origin::Api(id) => Action::Answer { id, result },
            Origin::Agent { link, request } => {
                let result = result.and_then(|reply| match reply {
                    Reply::Process(process) => Ok(ResolvedProcess {
                        incarnation: process.incarnation,
                        addresses: process.addresses,
                    }),
                    other => Err(Failure::new(
                        ErrorKind::Unavailable,
                        format!("unexpected reply {other:?}"),
                    )),
                });
                let message = ToAgent::Resolved { request, result };
                Action::Tell { link, message }
            }
        };
        self.actions.push(action);
    }

    pub(super) fn app(&self, name: &str) -> Result<&App, Failure> {
        self.apps
            .get(name)
            .ok_or_else(|| not_found(format!("there is no application {name:?}")))
    }

    fn application_create(
        &mut self,
        now: u64,
        spec: ApplicationSpec,
        secret: Secret,
        now_unix_ms: u64,
    ) -> Result<Reply, Failure> {
        let invalid = |detail: String| Err(Failure::new(ErrorKind::Invalid, detail));
        name_check("application", &spec.name)?;
        let name = &spec.name;
        if name.starts_with('_') {
            return invalid(format!("application name {name:?} begins with '_'"));
        }
        let modules_max = self.limits.modules_max;
        if spec.modules.len() > modules_max {
            return invalid(format!(
                "{} modules: at most {modules_max}",
                spec.modules.len()
            ));
        }
        if let Some(bad) = spec
            .modules
            .iter()
            .find(|path| path.is_empty() || path.len() > 4096 || path.contains('\0'))
        {
            let shown: String = bad.chars().take(40).collect();
            return invalid(format!("module {shown:?} is no path"));
        }
        PolicySettings::parse(&spec.settings)?;
        let settings = serde_json::to_string(&spec.settings)
            .map_err(|error| Failure::new(ErrorKind::Invalid, error.to_string()))?;
        if settings.len() > self.limits.settings_max_bytes {
            let limit = self.limits.settings_max_bytes;
            return invalid(format!(
                "settings of {} bytes: at most {limit}",
                settings.len()
            ));
        }
        if self.apps.contains_key(name) {
            let detail = format!("there is an application {name:?} already");
            return Err(Failure::new(ErrorKind::Conflict, detail));
        }
        limit_check(
            "applications",
            self.apps.len(),
            self.limits.applications_max,
        )?;
        let record = ApplicationRecord {
            name: spec.name,
            modules: spec.modules,
            settings,
            auto_create: spec.auto_create,
            created_unix_ms: now_unix_ms,
            key_id: 1,
            secret,
        };
        let change = Change::Application(record.clone());
        self.actions.push(Action::Persist(change));
        let app = App::new(record, spec.settings, now);
        let shown = app.show();
        self.apps.insert(shown.name.clone(), app);
        self.applications_tell();
        Ok(Reply::Application(shown))
    }

    fn key_revoke(&mut self, name: &str, secret: Secret) -> Result<Reply, Failure> {
        self.app(name)?;
        let Some(app) = self.apps.get_mut(name) else {
            return Err(not_found(format!("there is no application {name:?}")));
        };
        let Some(key_id) = app.record.key_id.checked_add(1) else {
            let detail = format!("application {name:?} has used up its key ids");
            return Err(Failure::new(ErrorKind::LimitReached, detail));
        };
        app.record.key_id = key_id;
        app.record.secret = secret;
        let shown = app.show();
        let change = Change::Application(app.record.clone());
        self.actions.push(Action::Persist(change));
        self.applications_tell();
        Ok(Reply::Application(shown))
    }

    /// Tells every agent which applications there are.
    pub(super) fn applications_tell(&mut self) {
        let links: Vec<u64> = self.links.keys().copied().collect();
        for link in links {
            let message = self.applications_message();
            self.actions.push(Action::Tell { link, message });
        }
    }

    pub(super) fn applications_message(&self) -> ToAgent {
        let keys = self.apps.values().map(|app| ApplicationKey {
            application: app.record.name.clone(),
            key_id: app.record.key_id,
            secret: app.record.secret.clone(),
        });
        ToAgent::Applications(keys.collect())
    }

    fn token_create(&mut self, token: TokenRecord) -> Result<Reply, Failure> {
        if let Some(application) = &token.application {
            self.app(application)?;
        }
        if token.label.len() > 255 {
            let detail = format!("label of {} bytes: at most 255", token.label.len());
            return Err(Failure::new(ErrorKind::Invalid, detail));
        }
        limit_check("tokens", self.tokens.len(), self.limits.tokens_max)?;
        let info = super::token_info(&token);
        let change = Change::Token(token.clone());
        self.actions.push(Action::Persist(change));
        self.tokens.insert(token.hash, token);
        Ok(Reply::Token(info))
    }

    fn token_delete(&mut self, id: &str) -> Result<Reply, Failure> {
        let found = self
            .tokens
            .values()
            .find(|token| super::token_info(token).id == id)
            .map(|token| token.hash);
        let Some(hash) = found else {
            let shown: String = id.chars().take(40).collect();
            return Err(not_found(format!("there is no token {shown:?}")));
        };
        self.tokens.remove(&hash);
        self.actions
            .push(Action::Persist(Change::TokenRemoved(hash)));
        Ok(Reply::Done)
    }

    /// A request that is about one process.
    pub(super) fn process_request(
        &mut self,
        now: u64,
        origin: Origin,
        wait_ms: u64,
        key: &Key,
        verb: Verb,
    ) {
        let want = match self.verb_check(key, verb) {
            Ok(Some(want)) => want,
            Ok(None) => {
                return match verb {
                    Verb::Checkpoint => self.checkpoint_request(origin, wait_ms, key),
                    _ => {
                        let shown = self.shown(key);
                        self.answer(origin, shown);
                    }
                };
            }
            Err(failure) => return self.answer(origin, Err(failure)),
        };
        if self.entry(key).is_none() {
            self.entry_add(key);
        }
        if matches!(verb, Verb::SwapIn | Verb::Create) {
            self.hold_lift(key);
        }
        self.wait_for(now, origin, wait_ms, key, want);
    }

    /// Queues a request at a process, and does what is to be done for it.
    pub(super) fn wait_for(
        &mut self,
        now: u64,
        origin: Origin,
        wait_ms: u64,
        key: &Key,
        want: Want,
    ) {
        self.waiter_last += 1;
        let number = self.waiter_last;
        let deadline = now.saturating_add(wait_ms);
        let Some(entry) = self.entry_mut(key) else {
            return self.answer(origin, Err(never_created(key)));
        };
        entry.waiters.push_back(Waiter {
            number,
            origin,
            want,
            deadline,
        });
        self.deadlines.insert((deadline, number), key.clone());
        self.drive(key);
        if wait_ms == 0 {
            self.waiter_release(key, number);
        }
    }

    /// What a verb wants of the process; nothing, if it is to be shown. Errors are what can be
    /// told at once.
    fn verb_check(&self, key: &Key, verb: Verb) -> Result<Option<Want>, Failure> {
        let app = self.app(&key.application)?;
        let auto_create = app.record.auto_create;
        let Some(entry) = app.processes.get(&key.process) else {
            return match verb {
                Verb::Create => self.creation_check(key),
                Verb::Ensure if auto_create => self.creation_check(key),
                _ => Err(never_created(key)),
            };
        };
        // A record that is gone and has waiters is about to be started.
        let state = entry.record.state;
        let rests = entry.waiters.is_empty();
        let conflict = |detail: &str| {
            let detail = format!("{key} is {state}: {detail}");
            Err(Failure::new(ErrorKind::Conflict, detail))
        };
        limit_check(
            &format!("requests waiting for {key}"),
            entry.waiters.len(),
            self.limits.waiters_max,
        )?;
        match verb {
            Verb::Show => Ok(None),
            Verb::Create if state == ProcessState::Gone && rests => Ok(Some(Want::Ready)),
            Verb::Create => conflict("it was created already: delete it to begin anew"),
            Verb::Ensure | Verb::SwapIn
                if state == ProcessState::Gone
                    && rests
                    && !(auto_create && verb == Verb::Ensure) =>
            {
                Err(stopped(key))
            }
            Verb::Ensure => match self.hold_failure(key) {
                Some(failure) => Err(failure),
                None => Ok(Some(Want::Ready)),
            },
            Verb::SwapIn => Ok(Some(Want::Ready)),
            Verb::Checkpoint if entry.transfer.is_some() => conflict("it is being transferred"),
            Verb::Checkpoint if entry.serves() => Ok(None),
            Verb::Checkpoint => conflict("only of a process that serves"),
            Verb::Swap if matches!(state, ProcessState::Failed | ProcessState::Gone) => {
                conflict("there is nothing to swap out")
            }
            Verb::Swap => Ok(Some(Want::Swapped)),
            Verb::Stop => Ok(Some(Want::Stopped)),
            Verb::Delete => Ok(Some(Want::Deleted)),
        }
    }

    fn creation_check(&self, key: &Key) -> Result<Option<Want>, Failure> {
        name_check("process", &key.process)?;
        limit_check("processes", self.process_count, self.limits.processes_max)?;
        Ok(Some(Want::Ready))
    }

    /// A new process. It is stored when it is started, and forgotten if it never is.
    pub(super) fn entry_add(&mut self, key: &Key) {
        let Some(app) = self.apps.get_mut(&key.application) else {
            return;
        };
        let record = ProcessRecord {
            application: key.application.clone(),
            name: key.process.clone(),
            incarnation: 0,
            life: 0,
            state: ProcessState::Gone,
            node: None,
            swap_generation: 0,
            images: false,
            stopping: false,
            error: None,
            swapped: false,
        };
        app.processes
            .insert(key.process.clone(), Entry::new(record));
        self.process_count += 1;
    }
}

pub(super) fn not_found(detail: String) -> Failure {
    Failure::new(ErrorKind::NotFound, detail)
}

pub(super) fn never_created(key: &Key) -> Failure {
    let detail = format!(
        "application {:?} has no process {:?}: create it, or the application with auto_create",
        key.application, key.process
    );
    not_found(detail)
}

pub(super) fn stopped(key: &Key) -> Failure {
    let detail = format!("{key} was stopped: create it again");
    Failure::new(ErrorKind::Gone, detail)
}

pub(super) fn limit_check(what: &str, have: usize, limit: usize) -> Result<(), Failure> {
    match have < limit {
        true => Ok(()),
        false => Err(Failure::new(
            ErrorKind::LimitReached,
            format!("the limit of {limit} {what} is reached"),
        )),
    }
}
