//! `basic devices`.

use basic_core::DeviceSpec;
use clap::Args as ClapArgs;

use super::Dtype;

#[derive(Debug, ClapArgs)]
pub struct Devices {
    /// Run every operation on this device, forward and backward, and compare with what is expected.
    #[arg(long, value_name = "DEVICE")]
    pub check: Option<DeviceSpec>,
    /// Only in this type. Both float32 and bfloat16 where it is not given.
    #[arg(long, value_enum, requires = "check")]
    pub dtype: Option<Dtype>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
