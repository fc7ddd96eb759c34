//! The options of `basic devices`.

use basic_core::DeviceSpec;
use clap::Args as ClapArgs;

use super::Dtype;

#[derive(Debug, ClapArgs)]
pub struct Devices {
    /// Run every operation on this device, forward and backward, and compare with the expected results.
    #[arg(long, value_name = "DEVICE")]
    pub check: Option<DeviceSpec>,
    /// Time the operations that a training step of a 7B model consists of, on this device.
    #[arg(long, value_name = "DEVICE", conflicts_with = "check")]
    pub rates: Option<DeviceSpec>,
    /// Check and time what training on several devices does together: --together cuda:0,cuda:1. Of processes that
    /// mpirun, srun or torchrun has launched, each has the one device that is given.
    #[arg(long, value_name = "DEVICES", value_delimiter = ',', conflicts_with_all = ["check", "rates", "dtype"])]
    pub together: Vec<DeviceSpec>,
    /// Use only this data type. By default --check uses float32 and bfloat16, and --rates uses bfloat16.
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// With --rates: time only operations whose names contain this text.
    #[arg(long, value_name = "TEXT", default_value = "", requires = "rates", hide_default_value = true)]
    pub only: String,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
