//! `demo`.

use super::Context;
use super::error::CliError;
use crate::demo::{DemoOptions, demo_run};

pub fn demo(context: &Context, mut options: DemoOptions) -> Result<(), CliError> {
    options.quiet = context.output.json;
    options.settings = context.global.settings.clone();
    let demo = demo_run(&options).map_err(CliError::of)?;
    context.output.answer(&demo, || demo.to_string())
}
