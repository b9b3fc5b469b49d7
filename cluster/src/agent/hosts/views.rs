//! What all hosts of an application are told: its secret, and the view of its members.

use praas_control::agent::ApplicationKey;
use praas_control::api::{Member, ProcessState};
use praas_runtime::host::ToHost;
use praas_runtime::world::{self, MemberState, World};
use praas_transport::wire::Incarnation;

use super::{Action, HostKey, Hosts};

impl Hosts {
    pub(super) fn keys_update(&mut self, keys: Vec<ApplicationKey>) {
        let before = std::mem::take(&mut self.keys);
        for key in keys {
            let (key_id, secret) = (key.key_id, key.secret);
            if before.get(&key.application).map(|(id, _)| *id) != Some(key_id) {
                let to = self.linked_of(&key.application);
                if !to.is_empty() {
                    let secret = secret.clone();
                    let message = ToHost::Keys { key_id, secret };
                    self.actions.push(Action::Send(to, Box::new(message)));
                }
            }
            self.keys.insert(key.application, (key_id, secret));
        }
        let keys = &self.keys;
        self.worlds.retain(|name, _| keys.contains_key(name));
    }

    pub(super) fn world_update(
        &mut self,
        application: String,
        generation: u64,
        members: Vec<Member>,
    ) {
        let world = World {
            generation,
            members: members.into_iter().map(member).collect(),
        };
        let to = self.linked_of(&application);
        if !to.is_empty() {
            let message = Box::new(ToHost::World(world.clone()));
            self.actions.push(Action::Send(to, message));
        }
        self.worlds.insert(application, world);
    }

    pub(super) fn world_send(&mut self, key: &HostKey) {
        if let Some(world) = self.worlds.get(&key.application).cloned() {
            self.send(key, ToHost::World(world));
        }
    }

    fn linked_of(&self, application: &str) -> Vec<HostKey> {
        let first = HostKey {
            application: application.into(),
            process: String::new(),
        };
        self.hosts
            .range(first..)
            .take_while(|(key, _)| key.application == application)
            .filter(|(_, host)| host.linked)
            .map(|(key, _)| key.clone())
            .collect()
    }
}

/// The runtime knows fewer states: one that finishes what runs is where it was, one that failed is
/// gone until it is started anew.
fn member(member: Member) -> world::Member {
    let state = match member.state {
        ProcessState::Starting => MemberState::Starting,
        ProcessState::Ready | ProcessState::Quiescing => MemberState::Ready,
        ProcessState::Swapped => MemberState::Swapped,
        ProcessState::Failed | ProcessState::Gone => MemberState::Gone,
    };
    world::Member {
        name: member.name,
        incarnation: Incarnation(member.incarnation),
        state,
        addresses: member.addresses,
    }
}
