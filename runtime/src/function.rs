//! The functions of a process.
#![allow(missing_docs)]
use crate::invocation::{Payload, Status};
use crate::services::{Job, Services};
use praas_transport::sync::atomic::{AtomicBool, Ordering};
pub type Entry = fn(&dyn Services, &Job, &[u8]) -> (Status, Payload);
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionIndex(u32);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FunctionFlags(pub u32);
impl FunctionFlags {
    pub fn short(self) -> bool {
        self.0 & 1 != 0
    }
    pub fn long(self) -> bool {
        self.0 & 2 != 0
    }
    pub fn idempotent(self) -> bool {
        self.0 & 4 != 0
    }
}
pub struct Function {
    name: String,
    flags: FunctionFlags,
    entry: Entry,
    seems_long: AtomicBool,
}
impl Function {
    pub fn flags(&self) -> FunctionFlags {
        self.flags
    }
    pub fn seems_long(&self) -> bool {
        self.seems_long.load(Ordering::Relaxed)
    }
    pub fn seems_long_set(&self, long: bool) {
        if self.seems_long() != long {
            self.seems_long.store(long, Ordering::Relaxed)
        }
    }
    pub fn call(&self, services: &dyn Services, job: &Job, input: &[u8]) -> (Status, Payload) {
        (self.entry)(services, job, input)
    }
}
#[derive(Default)]
pub struct Registry {
    functions: Vec<Function>,
}
impl Registry {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn add(&mut self, name: &str, flags: u32, entry: Entry) {
        self.functions.push(Function {
            name: name.into(),
            flags: FunctionFlags(flags),
            entry,
            seems_long: AtomicBool::new(false),
        })
    }
    pub fn find(&self, name: &str) -> Option<FunctionIndex> {
        self.functions
            .iter()
            .position(|f| f.name == name)
            .map(|i| FunctionIndex(i as u32))
    }
    pub fn function(&self, index: FunctionIndex) -> &Function {
        &self.functions[index.0 as usize]
    }
    pub fn names(&self) -> Vec<String> {
        self.functions.iter().map(|f| f.name.clone()).collect()
    }
}
