//! One thread a device.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, ScopedJoinHandle};

use basic_core::{DeviceError, DeviceSpec};
use burn::tensor::Device;
use thiserror::Error;

use super::exchange::Exchange;
use super::{Collective, CollectiveError, Nccl, Solo, Threads};

/// Bytes of a replica's stack, as much as the main thread usually has.
const STACK: usize = 8 << 20;

/// Devices that cannot train together.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReplicasError {
    /// A device could not be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No device at all.
    #[error("no device is given: write --devices cuda:0,cuda:1")]
    None,
    /// Different kinds of devices, or ones that were not named.
    #[error("devices {0} cannot train together: name devices of one kind, such as cuda:0,cuda:1 or cpu,cpu")]
    Mixed(String),
    /// The batch has no equal shares.
    #[error("train.batch_size = {batch} is the batch of all {world} devices together: make it a multiple of {world}")]
    Shares {
        /// The batch size.
        batch: usize,
        /// The devices.
        world: usize,
    },
    /// A GPU twice.
    #[error("device {0} is named twice: a GPU holds one replica")]
    Twice(String),
}

/// The devices of a run, one replica on each.
#[derive(Debug, Clone)]
pub struct Replicas {
    devices: Vec<Device>,
    nccl: bool,
}

impl Replicas {
    /// Opens devices, with autodiff. CUDA devices sum by NCCL, all others by copies. The CPU may be named several times,
    /// for checks: its replicas share its cores.
    ///
    /// # Errors
    ///
    /// [`ReplicasError`]
    pub fn open(specs: &[DeviceSpec]) -> Result<Self, ReplicasError> {
        let names = || specs.iter().map(DeviceSpec::to_string).collect::<Vec<_>>().join(",");
        let first = specs.first().ok_or(ReplicasError::None)?;
        let alike = |spec: &DeviceSpec| std::mem::discriminant(spec) == std::mem::discriminant(first);
        if specs.len() > 1 && (*first == DeviceSpec::Auto || !specs.iter().all(alike)) {
            return Err(ReplicasError::Mixed(names()));
        }
        let gpu = matches!(first, DeviceSpec::Cuda(_) | DeviceSpec::Wgpu(_));
        if let Some((_, twice)) = specs.iter().enumerate().find(|(i, spec)| gpu && specs[..*i].contains(spec)) {
            return Err(ReplicasError::Twice(twice.to_string()));
        }
        let devices: Result<Vec<Device>, DeviceError> =
            specs.iter().map(|spec| spec.open().map(Device::autodiff)).collect();
        Ok(Self { devices: devices?, nccl: matches!(first, DeviceSpec::Cuda(_)) })
    }

    /// The devices, by rank.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// How many.
    pub fn world(&self) -> usize {
        self.devices.len()
    }

    /// Runs `body` once a device, at the same time, and gives what each returned, by rank.
    ///
    /// # Errors
    ///
    /// Those of [`Replicas::lead`].
    pub fn run<T, E>(&self, body: impl Fn(Arc<dyn Collective>, &Device) -> Result<T, E> + Sync) -> Result<Vec<T>, E>
    where
        T: Send,
        E: From<CollectiveError> + Display + Send,
    {
        let results: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::new());
        let keep = |collective: Arc<dyn Collective>, device: &Device| -> Result<(), E> {
            let rank = collective.rank();
            let result = body(collective, device)?;
            results.lock().unwrap_or_else(PoisonError::into_inner).push((rank, result));
            Ok(())
        };
        self.lead(&keep, &keep)?;
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(rank, _)| *rank);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// Runs `lead` on the calling thread as replica 0, and `follow` once for each further device, a thread each; gives
    /// what `lead` returned.
    ///
    /// A replica needs leaves of its own: Burn joins autodiff graphs that share a leaf, and one backward would consume the
    /// other's ("graph tape has already been consumed"). `model.clone().fork(device)` gives them and keeps the parameters'
    /// ids; frozen parameters stay shared on one device.
    ///
    /// # Errors
    ///
    /// That of the replica that failed first; the others stop at their next collective. A panic counts as a failure.
    pub fn lead<T, E>(
        &self,
        lead: impl FnOnce(Arc<dyn Collective>, &Device) -> Result<T, E>,
        follow: impl Fn(Arc<dyn Collective>, &Device) -> Result<(), E> + Sync,
    ) -> Result<T, E>
    where
        E: From<CollectiveError> + Display + Send,
    {
        let exchange = Arc::new(Exchange::new(self.world()));
        let mut collectives = self.collectives(&exchange).into_iter();
        let (Some(first), Some(device)) = (collectives.next(), self.devices.first()) else {
            return Err(CollectiveError::Ended { rank: 0 }.into());
        };
        if self.world() == 1 {
            return lead(Arc::new(Solo), device);
        }
        let (exchange, follow) = (&exchange, &follow);
        let (first, mut others) = std::thread::scope(|scope| {
            let mut threads = Vec::with_capacity(self.world());
            for collective in collectives {
                let rank = collective.rank();
                let device = &self.devices[rank];
                let named = Builder::new().name(format!("replica {rank}")).stack_size(STACK);
                let body = move || settle(exchange, rank, || follow(collective, device));
                threads.push(named.spawn_scoped(scope, body).map_err(|error| {
                    exchange.fail(rank, error.to_string());
                    E::from(CollectiveError::Thread { rank, message: error.to_string() })
                }));
            }
            let first = settle(exchange, 0, || lead(first, device));
            let join = |thread: Result<ScopedJoinHandle<'_, Result<(), E>>, E>| match thread?.join() {
                Ok(result) => result,
                // Panics are caught inside the thread: this is one of the panic's own value.
                Err(panic) => std::panic::resume_unwind(panic),
            };
            (first, threads.into_iter().map(join).collect::<Vec<_>>())
        });
        match exchange.failed() {
            // The first failure is the cause; what the others say follows from it.
            Some(CollectiveError::Replica { rank, .. }) if rank > 0 => others.swap_remove(rank - 1).and(first),
            _ => first,
        }
    }

    fn collectives(&self, exchange: &Arc<Exchange>) -> Vec<Arc<dyn Collective>> {
        match self.nccl {
            true => Nccl::over(exchange, &self.devices).into_iter().map(|c| Arc::new(c) as _).collect(),
            false => Threads::over(exchange).into_iter().map(|c| Arc::new(c) as _).collect(),
        }
    }
}

/// Runs a replica and tells the others how it ended.
fn settle<T, E>(exchange: &Exchange, rank: usize, body: impl FnOnce() -> Result<T, E>) -> Result<T, E>
where
    E: From<CollectiveError> + Display,
{
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let message = format!("panicked: {}", text(&*panic));
        Err(E::from(CollectiveError::Replica { rank, message }))
    });
    match &result {
        Ok(_) => exchange.end(rank),
        Err(error) => exchange.fail(rank, error.to_string()),
    }
    result
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref().cloned());
    text.unwrap_or_else(|| "without a message".into())
}
