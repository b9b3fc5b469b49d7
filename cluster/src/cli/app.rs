//! Applications, tokens and tickets.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use praas_control::api::{
    Application, ApplicationSpec, Settings, TicketSpec, TokenInfo, TokenRole, TokenSpec,
};
use serde_json::{Value, json};

use super::Context;
use super::error::CliError;
use super::output::time_shown;
use crate::agent::application_settings_check;

#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Deploy an application: shared libraries with functions
    Create(CreateArgs),
    /// List all applications
    List,
    /// Show one application
    Show(NameArgs),
    /// Delete an application whose processes are all stopped
    Delete(NameArgs),
    /// Refuse every ticket that was issued before
    Revoke(NameArgs),
}

#[derive(Debug, Args)]
pub struct NameArgs {
    /// The application
    application: String,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The application
    application: String,
    /// Shared library with functions; may be given more than once
    #[arg(long = "module", value_name = "FILE")]
    modules: Vec<PathBuf>,
    /// Setting of its processes, as in workers=2 or wait=\"warm\"; see docs of ProcessSettings
    #[arg(long = "setting", value_name = "KEY=VALUE")]
    process_settings: Vec<String>,
    /// Create a process when somebody asks for it
    #[arg(long)]
    auto_create: bool,
    /// Take the paths as they are: the nodes see other files than this machine
    #[arg(long)]
    remote: bool,
}

pub fn application(context: &Context, command: AppCommand) -> Result<(), CliError> {
    let control = context.control(None)?;
    let output = context.output;
    match command {
        AppCommand::Create(args) => {
            let spec = spec_of(&args)?;
            let made = control.application_create(&spec)?;
            output.answer(&made, || format!("created  {}", made.name))
        }
        AppCommand::List => list(context, &control.application_list()?),
        AppCommand::Show(args) => {
            let shown = control.application_show(&args.application)?;
            list(context, &[shown])
        }
        AppCommand::Delete(args) => {
            control.application_delete(&args.application)?;
            let name = &args.application;
            output.answer(&json!({"deleted": name}), || format!("deleted  {name}"))
        }
        AppCommand::Revoke(args) => {
            let shown = control.application_revoke(&args.application)?;
            output.answer(&shown, || {
                format!(
                    "revoked  tickets of {} below key id {}",
                    shown.name, shown.key_id
                )
            })
        }
    }
}

fn list(context: &Context, applications: &[Application]) -> Result<(), CliError> {
    let header = [
        "APPLICATION",
        "KEY ID",
        "CREATED",
        "AUTO",
        "SETTINGS",
        "MODULES",
    ];
    context.output.list(applications, &header, |application| {
        let settings = application.settings.iter();
        let settings: Vec<String> = settings
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        vec![
            application.name.clone(),
            application.key_id.to_string(),
            time_shown(application.created_unix_ms),
            if application.auto_create { "yes" } else { "no" }.into(),
            settings.join(" "),
            application.modules.join(" "),
        ]
    })
}

fn spec_of(args: &CreateArgs) -> Result<ApplicationSpec, CliError> {
    let mut modules = Vec::new();
    for module in &args.modules {
        let path = match args.remote {
            true => module.clone(),
            // Agents have another working directory.
            false => module.canonicalize().map_err(|error| {
                let mut wrong = CliError::bad(error);
                wrong = wrong.about(format!("cannot use module {}", module.display()));
                wrong.hint("build it first; --remote takes paths that only the nodes see")
            })?,
        };
        match path.into_os_string().into_string() {
            Ok(path) => modules.push(path),
            Err(path) => {
                return Err(CliError::usage(format!("path {path:?} is not UTF-8")));
            }
        }
    }
    let mut settings = Settings::new();
    for setting in &args.process_settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| {
            CliError::usage(format!(
                "{setting:?} sets nothing: write --setting KEY=VALUE"
            ))
        })?;
        setting_insert(&mut settings, key.trim(), value_of(value))?;
    }
    // The control plane knows nothing of hosts' settings: it would be heard of at each start.
    let text = serde_json::to_string(&settings).map_err(CliError::bad)?;
    application_settings_check(&text).map_err(CliError::usage)?;
    Ok(ApplicationSpec {
        name: args.application.clone(),
        modules,
        settings,
        auto_create: args.auto_create,
    })
}

/// Numbers, truths and lists as in JSON; everything else is a text.
fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.into()))
}

/// Sets `a.b` in the section `a`.
fn setting_insert(settings: &mut Settings, key: &str, value: Value) -> Result<(), CliError> {
    let mut names = key.split('.');
    let first = names.next().unwrap_or_default();
    let mut at = settings.entry(first.into()).or_insert(Value::Null);
    for name in names {
        if at.is_null() {
            *at = json!({});
        }
        let Value::Object(inner) = at else {
            return Err(CliError::usage(format!(
                "setting {key:?}: above {name:?} is a value"
            )));
        };
        at = inner.entry(name).or_insert(Value::Null);
    }
    *at = value;
    Ok(())
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Issue a token; it is shown this once
    Create(TokenArgs),
    /// List all tokens, without what makes them good
    List,
    /// Revoke a token
    Delete {
        /// Its id, from `token list`
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The one application that it is for; left out, it is an administrator's
    #[arg(long, value_name = "APP")]
    application: Option<String>,
    /// What it is for
    #[arg(long, default_value = "")]
    label: String,
}

pub fn token(context: &Context, command: TokenCommand) -> Result<(), CliError> {
    let control = context.control(None)?;
    let output = context.output;
    match command {
        TokenCommand::Create(args) => {
            let role = match args.application {
                Some(application) => TokenRole::Application(application),
                None => TokenRole::Admin,
            };
            let label = args.label;
            let issued = control.token_create(&TokenSpec { role, label })?;
            output.answer(&issued, || issued.token.clone())
        }
        TokenCommand::List => {
            let header = ["ID", "ROLE", "CREATED", "LABEL"];
            output.list(&control.token_list()?, &header, |token: &TokenInfo| {
                let role = match &token.role {
                    TokenRole::Admin => "admin".into(),
                    TokenRole::Application(name) => format!("application {name}"),
                };
                let created = time_shown(token.created_unix_ms);
                vec![token.id.clone(), role, created, token.label.clone()]
            })
        }
        TokenCommand::Delete { id } => {
            control.token_delete(&id)?;
            output.answer(&json!({"deleted": id}), || format!("revoked  {id}"))
        }
    }
}

#[derive(Debug, Args)]
pub struct TicketArgs {
    /// The application
    application: String,
    /// The client id that it is bound to, 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Milliseconds that it is to be good [default: as long as the control plane allows]
    #[arg(long, value_name = "MS")]
    valid_ms: Option<u64>,
}

pub fn ticket(context: &Context, args: &TicketArgs) -> Result<(), CliError> {
    let issued = context.control(None)?.ticket_issue(&TicketSpec {
        application: Some(args.application.clone()),
        client_id: args.client_id.clone(),
        valid_ms: args.valid_ms,
    })?;
    // It is for programs: there is nothing in it for people.
    context.output.object(&issued)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_json_or_text() {
        let mut settings = Settings::new();
        for (key, value) in [
            ("workers", "2"),
            ("wait", "Warm"),
            ("transport.spin_us", "0"),
        ] {
            setting_insert(&mut settings, key, value_of(value)).unwrap();
        }
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            text,
            r#"{"transport":{"spin_us":0},"wait":"Warm","workers":2}"#
        );
        assert!(setting_insert(&mut settings, "workers.x", value_of("1")).is_err());
    }

    #[test]
    fn a_module_that_is_not_there_is_bad_input() {
        let args = CreateArgs {
            application: "a".into(),
            modules: vec!["/none.so".into()],
            process_settings: Vec::new(),
            auto_create: false,
            remote: false,
        };
        assert_eq!(
            spec_of(&args).unwrap_err().code(),
            super::super::error::USAGE
        );
        let args = CreateArgs {
            remote: true,
            ..args
        };
        assert_eq!(spec_of(&args).unwrap().modules, ["/none.so"]);
    }
}
