//! Runs one thread per device.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::Builder;

use basic_core::{DeviceError, DeviceSpec, check_nccl};
use burn::tensor::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

#[cfg(feature = "cuda")]
use super::Nccl;
use super::exchange::Exchange;
use super::{Collective, CollectiveError, Solo, Threads};

/// The stack size of a replica's thread in bytes, as large as the main thread's usually is.
const STACK: usize = 8 << 20;

/// The environment variable that, set to 0, lets the processes of an MPI launch move tensors through host memory instead
/// of by NCCL.
const SWITCH: &str = "BASIC_NCCL";

/// Why devices cannot train together.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReplicasError {
    /// A device could not be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No device was given.
    #[error("no device is given: write --devices cuda:0,cuda:1")]
    None,
    /// The devices are of different kinds, or not all were named.
    #[error("devices {0} cannot train together: name devices of one kind, such as cuda:0,cuda:1 or cpu,cpu")]
    Mixed(String),
    /// A GPU was named twice.
    #[error("device {0} is named twice: a GPU holds one replica")]
    Twice(String),
    /// The processes' launcher connects no device of this kind.
    #[error(
        "{world} processes of torchrun move tensors between CUDA devices alone, by NCCL, and this one's device is {device}: build with `--features cuda`, or launch with `mpirun -n {world} basic …`, which works on every device (`--features mpi`)"
    )]
    Apart {
        /// This process's device.
        device: String,
        /// The number of processes.
        world: usize,
    },
    /// The devices could not be connected.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// The devices of a run, one replica on each.
#[derive(Clone)]
pub struct Replicas {
    devices: Vec<Device>,
    /// The numbers of the devices where all are CUDA's.
    cuda: Option<Vec<usize>>,
    /// The processes of which this one has one device.
    group: Option<Arc<dyn Collective>>,
}

impl Replicas {
    /// Opens devices with autodiff. CUDA devices sum with NCCL, all others by copies. For tests, the CPU may be named
    /// several times; its replicas then share its cores.
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
        let devices = devices?;
        let number = |spec: &DeviceSpec| match spec {
            DeviceSpec::Cuda(index) => Some(*index),
            _ => None,
        };
        let cuda: Option<Vec<usize>> = specs.iter().map(number).collect();
        if cuda.is_some() && devices.len() > 1 {
            check_nccl()?;
        }
        Ok(Self { devices, cuda, group: None })
    }

    /// Opens the one device of a process that was launched with others. The processes' CUDA devices are connected by
    /// NCCL, unless MPI connects the processes and the environment says `BASIC_NCCL=0`.
    ///
    /// # Errors
    ///
    /// [`ReplicasError`]
    pub fn launched(spec: DeviceSpec, group: Arc<dyn Collective>) -> Result<Self, ReplicasError> {
        let own = Self::open(&[spec])?;
        let off = group.moves_tensors() && std::env::var(SWITCH).is_ok_and(|value| value.trim() == "0");
        match own.cuda.as_deref() {
            #[cfg(feature = "cuda")]
            Some([index]) if !off => {
                check_nccl()?;
                let nccl = Nccl::over(group, *index);
                nccl.connect()?;
                Ok(Self { group: Some(Arc::new(nccl)), ..own })
            }
            _ if group.moves_tensors() || off => Ok(Self { group: Some(group), ..own }),
            _ => Err(ReplicasError::Apart { device: spec.to_string(), world: group.world() }),
        }
    }

    /// Connects a single CUDA device with itself, so that NCCL is used where training would not need it; for checks.
    ///
    /// # Errors
    ///
    /// [`ReplicasError`]
    pub fn linked(self) -> Result<Self, ReplicasError> {
        #[cfg(feature = "cuda")]
        if let (None, Some([index])) = (&self.group, self.cuda.as_deref()) {
            check_nccl()?;
            let alone = Threads::new(1).remove(0);
            return Ok(Self { group: Some(Arc::new(Nccl::over(Arc::new(alone), *index))), ..self });
        }
        Ok(self)
    }

    /// The devices of this process, by rank.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The number of replicas, over all processes.
    pub fn world(&self) -> usize {
        self.group.as_ref().map_or(self.devices.len(), |group| group.world())
    }

    /// This process's number and the number of processes, if it was launched with others.
    pub fn process(&self) -> Option<(usize, usize)> {
        self.group.as_ref().map(|group| (group.rank(), group.world()))
    }

    /// Whether this process has the first replica.
    pub fn leads(&self) -> bool {
        self.process().is_none_or(|(rank, _)| rank == 0)
    }

    /// Gives every process the value of the first; `mine` is not asked for on the others.
    ///
    /// # Errors
    ///
    /// The error of `mine`, or [`CollectiveError`] if another process has failed.
    pub fn from_first<T, E>(&self, mine: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<CollectiveError>,
    {
        let Some(group) = &self.group else { return mine() };
        let own = if group.rank() == 0 { Some(mine()?) } else { None };
        let first = group.share(&own)?.into_iter().next().flatten();
        first.ok_or_else(|| CollectiveError::Transfer("the first process brought nothing".into()).into())
    }

    /// Runs `body` once per device, concurrently, and returns the results by rank. With a single device it runs on the
    /// calling thread.
    ///
    /// Each replica needs its own leaf tensors: Burn joins autodiff graphs that share a leaf, and one backward pass
    /// would consume the other's graph ("graph tape has already been consumed"). `model.clone().fork(device)` creates
    /// such leaves and keeps the parameters' ids; frozen parameters stay shared on one device.
    ///
    /// # Errors
    ///
    /// The error of the replica that failed first; the others stop at their next collective call. A panic counts as a
    /// failure.
    pub fn run<T, E>(&self, body: impl Fn(Arc<dyn Collective>, &Device) -> Result<T, E> + Sync) -> Result<Vec<T>, E>
    where
        T: Send,
        E: From<CollectiveError> + Display + Send,
    {
        if let [device] = &self.devices[..] {
            let collective = self.group.clone().unwrap_or_else(|| Arc::new(Solo));
            return Ok(vec![body(collective, device)?]);
        }
        let exchange = Arc::new(Exchange::new(self.world()));
        let replica = |rank: usize, collective: Arc<dyn Collective>| {
            let result = catch_unwind(AssertUnwindSafe(|| body(collective, &self.devices[rank])));
            let result = result.unwrap_or_else(|panic| {
                let message = format!("panicked: {}", text(&*panic));
                Err(E::from(CollectiveError::Replica { rank, message }))
            });
            match &result {
                Ok(_) => exchange.end(rank),
                Err(error) => exchange.fail(rank, error.to_string()),
            }
            result
        };
        let replica = &replica;
        let mut results: Vec<Result<T, E>> = std::thread::scope(|scope| {
            let mut threads = Vec::with_capacity(self.world());
            for (rank, collective) in self.collectives(&exchange).into_iter().enumerate() {
                let named = Builder::new().name(format!("replica {rank}")).stack_size(STACK);
                let thread = named.spawn_scoped(scope, move || replica(rank, collective));
                if let Err(error) = &thread {
                    exchange.fail(rank, error.to_string());
                }
                threads.push(thread);
            }
            let join = |(rank, thread): (usize, std::io::Result<std::thread::ScopedJoinHandle<'_, Result<T, E>>>)| {
                let failed = |message: String| E::from(CollectiveError::Thread { rank, message });
                match thread.map(std::thread::ScopedJoinHandle::join) {
                    Ok(Ok(result)) => result,
                    // Panics are caught inside the thread.
                    Ok(Err(panic)) => Err(failed(text(&*panic))),
                    Err(error) => Err(failed(error.to_string())),
                }
            };
            threads.into_iter().enumerate().map(join).collect()
        });
        if let Some(CollectiveError::Replica { rank, .. }) = exchange.failed() {
            // The first failure is the cause, and the errors of the other replicas follow from it.
            results = vec![results.swap_remove(rank)];
        }
        results.into_iter().collect()
    }

    fn collectives(&self, exchange: &Arc<Exchange>) -> Vec<Arc<dyn Collective>> {
        let threads = Threads::over(exchange).into_iter().map(|threads| Arc::new(threads) as Arc<dyn Collective>);
        #[cfg(feature = "cuda")]
        if let Some(cuda) = &self.cuda {
            return threads.zip(cuda).map(|(threads, index)| Arc::new(Nccl::over(threads, *index)) as _).collect();
        }
        threads.collect()
    }
}

impl std::fmt::Debug for Replicas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { devices, cuda, .. } = self;
        f.debug_struct("Replicas").field("devices", devices).field("cuda", cuda).finish_non_exhaustive()
    }
}

/// The message of a panic.
pub fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref().cloned());
    text.unwrap_or_else(|| "without a message".into())
}
