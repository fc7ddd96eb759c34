//! How this process was launched: alone, or by `mpirun`, `srun` or `torchrun` as one of several.

use std::sync::Arc;
use std::time::Duration;

use basic_core::{DeviceError, DeviceSpec, available_devices};
use thiserror::Error;

use super::line::{Line, Place};
use super::{Collective, Failure};

/// The largest number of processes that is believed.
const MOST: usize = 1 << 20;

/// How long a process waits for the others, where a recipe does not say otherwise.
pub const TIME_LIMIT: Duration = Duration::from_secs(1800);

/// How long the processes of `torchrun` wait until all are there.
const MEETING: Duration = Duration::from_secs(300);

/// What launched this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// OpenMPI's `mpirun` (or `mpiexec`).
    OpenMpi,
    /// Another process manager of MPI that sets `PMI_RANK`: MPICH's, Intel's, or Slurm's with `--mpi=pmi2`.
    Pmi,
    /// Slurm's `srun`.
    Slurm,
    /// PyTorch's `torchrun`.
    Torchrun,
}

impl Launcher {
    /// The program that users know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "mpirun",
            Self::Pmi => "an MPI process manager (PMI)",
            Self::Slurm => "srun",
            Self::Torchrun => "torchrun",
        }
    }

    /// The environment variables of the rank, the number of processes, and the rank on this machine.
    fn variables(self) -> [&'static str; 3] {
        match self {
            Self::OpenMpi => ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
            Self::Pmi => ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
            // Of a step alone: a batch script has SLURM_PROCID and SLURM_NTASKS too, though it is one process.
            Self::Slurm => ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
            Self::Torchrun => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
        }
    }
}

/// Why processes that were launched together cannot work together.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LaunchError {
    /// An environment variable that is no such number.
    #[error("{variable} is {value:?} in the environment that {launcher} made: it must be {wanted}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// Its value; empty where it is missing.
        value: String,
        /// Who sets it.
        launcher: &'static str,
        /// What it must be.
        wanted: String,
    },
    /// The build has no transport between processes.
    #[error(
        "{launcher} has launched {world} processes, and this build has nothing that connects them: build with `--features mpi` (it needs OpenMPI: libopenmpi-dev, openmpi-bin and libclang-dev on Debian), or run one process with --devices"
    )]
    NotBuilt {
        /// What launched them.
        launcher: &'static str,
        /// How many.
        world: usize,
    },
    /// The processes of `torchrun` did not find each other.
    #[error("{0}")]
    Meeting(String),
    /// MPI and the launcher do not agree.
    #[error(
        "{launcher} has launched {launched} processes, MPI connects {connected}: launch with the mpirun of the MPI that this program was built with ({library})"
    )]
    World {
        /// What launched them.
        launcher: &'static str,
        /// How many it says that it launched.
        launched: usize,
        /// How many MPI knows of.
        connected: usize,
        /// The MPI library.
        library: String,
    },
    /// MPI did not start.
    #[error("MPI did not start: {0}")]
    Mpi(String),
}

/// How one of several processes failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroupError {
    /// Another process reports why.
    #[error("another process reports why")]
    Reported,
    /// Only this one failed by itself.
    #[error("rank {rank}: {message}")]
    Rank {
        /// This process.
        rank: usize,
        /// Its error.
        message: String,
    },
}

/// A process that was launched as one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What launched it.
    pub launcher: Launcher,
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are; at least 2.
    pub world: usize,
    /// Its number on this machine, where the launcher says so.
    pub local_rank: Option<usize>,
}

impl Launch {
    /// Finds out from the environment; `None` for a process that was launched alone.
    ///
    /// # Errors
    ///
    /// [`LaunchError::Variable`]
    pub fn detect() -> Result<Option<Self>, LaunchError> {
        Self::from(&|name| std::env::var(name).ok())
    }

    fn from(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, LaunchError> {
        let all = [Launcher::OpenMpi, Launcher::Pmi, Launcher::Slurm, Launcher::Torchrun];
        // Where `srun` has started torchrun itself, its variables are there too.
        let innermost = get("TORCHELASTIC_RUN_ID").map(|_| Launcher::Torchrun);
        let found = innermost.or_else(|| all.into_iter().find(|launcher| get(launcher.variables()[1]).is_some()));
        let Some(launcher) = found else { return Ok(None) };
        let [rank, world, local] = launcher.variables();
        let number = |variable: &'static str, least: usize, most: usize| {
            let value = get(variable).unwrap_or_default();
            let parsed = value.trim().parse().ok().filter(|number| (least..=most).contains(number));
            let wanted = format!("a whole number from {least} to {most}");
            parsed.ok_or(LaunchError::Variable { variable, value, launcher: launcher.name(), wanted })
        };
        let world = number(world, 1, MOST)?;
        let rank = number(rank, 0, world - 1)?;
        let local_rank = get(local).map(|_| number(local, 0, world - 1)).transpose()?;
        Ok((world > 1).then_some(Self { launcher, rank, world, local_rank }))
    }
}

/// The processes of a launch, connected.
pub struct Group {
    /// What they do together.
    pub collective: Arc<dyn Collective>,
    /// This process's number among those of this machine: which of its GPUs it takes.
    pub local_rank: usize,
    /// What moves the bytes.
    pub transport: &'static str,
}

impl Group {
    /// Connects this process to the others that were launched with it; `None` if it was launched alone.
    ///
    /// # Errors
    ///
    /// [`LaunchError`]
    pub fn join() -> Result<Option<Self>, LaunchError> {
        let Some(launch) = Launch::detect()? else { return Ok(None) };
        match launch.launcher {
            Launcher::Torchrun => Self::over_sockets(&launch).map(Some),
            Launcher::OpenMpi | Launcher::Pmi | Launcher::Slurm => Self::over_mpi(&launch).map(Some),
        }
    }

    fn over_sockets(launch: &Launch) -> Result<Self, LaunchError> {
        let place = Place::of(&|name| std::env::var(name).ok(), launch.rank, launch.world)?;
        let line = Line::open(&place, MEETING, TIME_LIMIT)?;
        let local_rank = launch.local_rank.unwrap_or(launch.rank);
        Ok(Self { collective: Arc::new(line), local_rank, transport: "sockets" })
    }

    /// The device of this process: the one of its number where `given` is a GPU without a number, or the machine's best.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if the machine has fewer of them than processes.
    pub fn device(&self, given: DeviceSpec) -> Result<DeviceSpec, DeviceError> {
        let own = |spec: DeviceSpec| match spec {
            DeviceSpec::Cuda(0) => DeviceSpec::Cuda(self.local_rank),
            DeviceSpec::Wgpu(None | Some(0)) => DeviceSpec::Wgpu(Some(self.local_rank)),
            other => other,
        };
        if given != DeviceSpec::Auto {
            return Ok(own(given));
        }
        let best = available_devices().into_iter().find(|info| info.usable && !info.software);
        best.map(|info| own(info.spec)).ok_or_else(|| DeviceError::NotFound("auto".into()))
    }

    /// Runs `body` in this process. If it fails, the others hear of it, by the text that `message` makes of the error,
    /// and stop.
    ///
    /// # Errors
    ///
    /// That of `body` if all processes fail alike, and [`GroupError`] for one that not all have.
    pub fn run<E: From<GroupError>>(
        &self,
        body: impl FnOnce() -> Result<(), E>,
        message: impl Fn(&E) -> String,
    ) -> Result<(), E> {
        let done = body().map_err(|error| {
            let text = message(&error);
            match self.collective.fail(&text) {
                Failure::Heard => GroupError::Reported.into(),
                Failure::Alike => error,
                Failure::Alone => GroupError::Rank { rank: self.collective.rank(), message: text }.into(),
            }
        });
        #[cfg(feature = "mpi")]
        super::mpi::close(done.is_err());
        done
    }

    #[cfg(feature = "mpi")]
    fn over_mpi(launch: &Launch) -> Result<Self, LaunchError> {
        let mpi = super::Mpi::open(TIME_LIMIT)?;
        let connected = mpi.world();
        if connected != launch.world {
            let launcher = launch.launcher.name();
            let library = super::Mpi::library();
            return Err(LaunchError::World { launcher, launched: launch.world, connected, library });
        }
        let local_rank = launch.local_rank.unwrap_or_else(|| mpi.local_rank());
        Ok(Self { collective: Arc::new(mpi), local_rank, transport: "MPI" })
    }

    #[cfg(not(feature = "mpi"))]
    fn over_mpi(launch: &Launch) -> Result<Self, LaunchError> {
        Err(LaunchError::NotBuilt { launcher: launch.launcher.name(), world: launch.world })
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { collective, local_rank, transport } = self;
        write!(f, "Group({transport}: {} of {}, {local_rank} here)", collective.rank(), collective.world())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launched(pairs: &[(&str, &str)]) -> Result<Option<Launch>, LaunchError> {
        let get = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string());
        Launch::from(&get)
    }

    #[test]
    fn each_launcher_is_known_by_its_variables() {
        let of = |launcher: Launcher| {
            let [rank, world, local] = launcher.variables();
            launched(&[(rank, "5"), (world, "8"), (local, "1")]).unwrap().unwrap()
        };
        for launcher in [Launcher::OpenMpi, Launcher::Pmi, Launcher::Slurm, Launcher::Torchrun] {
            assert_eq!(of(launcher), Launch { launcher, rank: 5, world: 8, local_rank: Some(1) });
        }
        assert_eq!(launched(&[]), Ok(None));
        assert_eq!(launched(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")]), Ok(None));
        // torchrun that srun has started.
        let pairs = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2"), ("TORCHELASTIC_RUN_ID", "none")];
        let pairs = [&pairs[..], &[("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")]].concat();
        let found = launched(&pairs).unwrap().unwrap();
        assert_eq!(found, Launch { launcher: Launcher::Torchrun, rank: 9, world: 16, local_rank: Some(1) });
        // A batch script of Slurm is one process, whatever it asks for.
        assert_eq!(launched(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), Ok(None));
    }

    #[test]
    fn numbers_that_cannot_be_are_named() {
        for (rank, world, named) in [("8", "8", "RANK"), ("", "2", "RANK"), ("0", "many", "SIZE"), ("0", "0", "SIZE")] {
            let error = launched(&[("PMI_RANK", rank), ("PMI_SIZE", world)]).unwrap_err().to_string();
            assert!(error.contains(&format!("PMI_{named}")), "{error}");
        }
        let error = launched(&[("PMI_SIZE", "2")]).unwrap_err().to_string();
        assert!(error.contains("PMI_RANK is \"\"") && error.contains("from 0 to 1"), "{error}");
    }
}
