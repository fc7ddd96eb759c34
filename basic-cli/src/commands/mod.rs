//! Runs the commands, with one file for each family of commands.

mod ablate;
mod analyze;
mod bench;
mod chat;
mod checkpoint;
mod compare;
mod data;
mod demo;
mod devices;
mod eval;
mod export_metrics;
mod generate;
mod model;
mod report;
#[cfg(feature = "serve")]
mod serve;
mod shapes_world;
mod train;

use anyhow::{Result, ensure};
use basic_core::DeviceSpec;
use basic_train::parallel::Group;

use crate::args::{Command, Data, Dtype};

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(args) => demo::demo(args),
        Command::Train(args) => train::train(args),
        Command::Eval(args) => eval::eval(args),
        Command::Ablate(args) => ablate::ablate(args),
        Command::Compare(args) => compare::compare(args),
        Command::Report(args) => report::report(args),
        Command::ExportMetrics(args) => export_metrics::export_metrics(args),
        Command::Analyze(args) => analyze::analyze(*args),
        Command::Generate(args) => generate::generate(args),
        Command::Chat(args) => chat::chat(args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::serve(args),
        Command::Losses(args) => model::losses(args),
        Command::Assemble(args) => checkpoint::assemble(args),
        Command::Convert(args) => checkpoint::convert(args),
        Command::Merge(args) => checkpoint::merge(args),
        Command::Inspect(args) => checkpoint::inspect(args),
        Command::Preprocess(args) => model::preprocess(args),
        Command::Bench(args) => bench::bench(args),
        Command::Data { command } => match command {
            Data::Shapes(args) => shapes_world::shapes(args),
            Data::Check(args) => data::data_check(args),
            Data::Show(args) => data::data_show(args),
            Data::Export(args) => data::data_export(args),
        },
        Command::Backbones(args) => shapes_world::backbones(args),
        Command::Devices(args) => devices::devices(args),
    }
}

/// The device of a process that was launched with others; `several` are those of `--devices`, which is not for them.
fn own_device(group: &Group, several: &[DeviceSpec], given: DeviceSpec) -> Result<DeviceSpec> {
    ensure!(
        several.is_empty(),
        "--devices {} is for one process with several devices; of {} processes each has one: name it with --device",
        several.iter().map(DeviceSpec::to_string).collect::<Vec<_>>().join(","),
        group.collective.world()
    );
    Ok(group.device(given)?)
}

impl From<Dtype> for burn::tensor::DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::F32,
            Dtype::Bfloat16 => Self::BF16,
            Dtype::Float16 => Self::F16,
        }
    }
}
