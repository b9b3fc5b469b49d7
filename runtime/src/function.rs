//! The functions of a process: tables of modules, by name and by number.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use praas_transport::sync::atomic::{AtomicBool, Ordering};
use serde::{Deserialize, Serialize};

use crate::abi::{
    EntryFn, FLAG_IDEMPOTENT, FLAG_LONG, FLAG_SHORT, ModuleError, ModuleTable, call_run,
    module_check, module_load,
};
use crate::invocation::{Payload, Status};
use crate::services::{Job, Services};

/// A function's number in its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionIndex(u32);

impl FunctionIndex {
    /// The number: those of a process's functions are dense from zero.
    pub(crate) fn number(self) -> usize {
        self.0 as usize
    }
}

/// What is known of a function before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FunctionFlags(u64);

impl FunctionFlags {
    /// It is short: the leader keeps the endpoint while it runs.
    pub fn short(self) -> bool {
        self.0 & FLAG_SHORT != 0
    }

    /// It runs long: another worker takes the endpoint over at once.
    pub fn long(self) -> bool {
        self.0 & FLAG_LONG != 0
    }

    /// Running it twice does no harm.
    pub fn idempotent(self) -> bool {
        self.0 & FLAG_IDEMPOTENT != 0
    }
}

/// Limits of a function's invocations. Modules declare them, applications override them by the
/// settings `functions.<name>`: what is absent there is as the module says; zero is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FunctionLimits {
    /// How many run at once; the others wait for their turn, in the order of their coming.
    pub concurrency_max: Option<u32>,
    /// Milliseconds that one runs before its caller gets `DeadlineExceeded`.
    pub time_max_ms: Option<u64>,
    /// Bytes that one holds through the host: input, output, views, messages, growth of state.
    pub memory_max_bytes: Option<u64>,
}

impl FunctionLimits {
    /// These, where `over` says nothing else.
    pub fn overridden(self, over: Self) -> Self {
        Self {
            concurrency_max: over.concurrency_max.or(self.concurrency_max),
            time_max_ms: over.time_max_ms.or(self.time_max_ms),
            memory_max_bytes: over.memory_max_bytes.or(self.memory_max_bytes),
        }
    }
}

/// A function.
pub struct Function {
    name: &'static str,
    flags: FunctionFlags,
    limits: FunctionLimits,
    entry: EntryFn,
    seems_long: AtomicBool,
}

impl Function {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What is known of it.
    pub fn flags(&self) -> FunctionFlags {
        self.flags
    }

    /// Its limits, as its module declares them.
    pub fn limits(&self) -> FunctionLimits {
        self.limits
    }

    /// Whether its last run outlasted the leader's patience.
    pub fn seems_long(&self) -> bool {
        self.seems_long.load(Ordering::Relaxed)
    }

    /// Notes whether it did.
    pub fn seems_long_set(&self, long: bool) {
        if self.seems_long() != long {
            self.seems_long.store(long, Ordering::Relaxed);
        }
    }

    /// Runs it, apart from the hot path.
    #[inline(never)]
    pub(crate) fn call_apart(
        &self,
        services: &dyn Services,
        job: &Job,
        input: &[u8],
    ) -> (Status, Payload) {
        self.call(services, job, input)
    }

    /// Runs it.
    #[inline(always)]
    pub fn call(&self, services: &dyn Services, job: &Job, input: &[u8]) -> (Status, Payload) {
        call_run(self.entry, services, job, self.name, input)
    }
}

/// The functions of a process.
#[derive(Default)]
pub struct Registry {
    functions: Vec<Function>,
    by_name: HashMap<&'static str, FunctionIndex>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.functions.iter().map(|function| function.name))
            .finish()
    }
}

impl Registry {
    /// No functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the functions of a module that is linked in.
    ///
    /// # Errors
    /// A malformed table; a name that is taken. Nothing is added then.
    pub fn module_add(&mut self, module: &'static ModuleTable) -> Result<(), ModuleError> {
        let (module, functions) = module_check(module)?;
        let mut names: Vec<_> = functions.iter().map(|function| function.name).collect();
        names.sort_unstable();
        let twice = names
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| pair[0]);
        let taken = names
            .into_iter()
            .find(|name| self.by_name.contains_key(name));
        if let Some(function) = twice.or(taken) {
            return Err(ModuleError::Duplicate {
                module: module.into(),
                function: function.into(),
            });
        }
        for function in functions {
            let index = FunctionIndex(self.functions.len() as u32);
            self.by_name.insert(function.name, index);
            self.functions.push(Function {
                name: function.name,
                flags: FunctionFlags(function.flags),
                limits: function.limits,
                entry: function.entry,
                seems_long: AtomicBool::new(false),
            });
        }
        Ok(())
    }

    /// Loads a module from a shared library, for the rest of this OS process's life.
    ///
    /// # Errors
    /// A library that cannot be loaded or is no module; besides those of
    /// [`module_add`](Self::module_add).
    pub fn module_load(&mut self, path: &Path) -> Result<(), ModuleError> {
        self.module_add(module_load(path)?)
    }

    /// The function of a name.
    pub fn find(&self, name: &str) -> Option<FunctionIndex> {
        self.by_name.get(name).copied()
    }

    /// The function of a number that [`find`](Self::find) gave.
    pub fn function(&self, index: FunctionIndex) -> &Function {
        &self.functions[index.0 as usize]
    }

    /// All functions, by number.
    pub(crate) fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter()
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        self.functions
            .iter()
            .map(|function| function.name.to_owned())
            .collect()
    }
}
