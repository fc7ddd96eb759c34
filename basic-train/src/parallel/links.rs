//! Checks and times what replicas do together, on the devices and the network of a run: values that everybody can
//! compute are summed, gathered and broadcast, and compared.

use std::time::Instant;

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Collective, CollectiveError, Replicas};

/// The lengths of the tensors, in elements for each replica: a few, odd, and large enough to fill a network.
const LENGTHS: [usize; 3] = [1, 1023, 4 << 20];
/// How often an operation is timed.
const REPEATS: u32 = 3;

/// One operation of all replicas on tensors of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// `sum`, `reduce_scatter`, `all_gather` or `broadcast`.
    pub operation: String,
    /// The type of the values.
    pub dtype: String,
    /// The size of the whole tensor in bytes.
    pub bytes: u64,
    /// Whether every replica received the right values.
    pub passed: bool,
    /// Seconds of one operation, the slowest replica's.
    pub seconds: f64,
    /// Bytes that each replica sends in a second, in units of 1e9, as NCCL's own tests count them: a ring sends
    /// (N - 1) / N of the tensor, a sum twice that.
    pub gigabytes: f64,
}

/// Runs every operation in f32 and, where the devices have it, bf16, and gives `report` each result on replica 0.
///
/// # Errors
///
/// [`CollectiveError`] if the replicas cannot work together; values that are wrong are in the result instead.
pub fn links(replicas: &Replicas, report: &(dyn Fn(&Link) + Sync)) -> Result<Vec<Link>, CollectiveError> {
    let all = replicas.run(|collective, device| {
        let device = device.clone().without_autodiff();
        let mut links = Vec::new();
        for dtype in [DType::F32, DType::BF16].into_iter().filter(|dtype| device.supports_dtype(*dtype)) {
            for length in LENGTHS {
                for operation in ["sum", "reduce_scatter", "all_gather", "broadcast"] {
                    let link = link(&*collective, &device, operation, dtype, length)?;
                    if collective.rank() == 0 {
                        report(&link);
                    }
                    links.push(link);
                }
            }
        }
        Ok::<_, CollectiveError>(links)
    })?;
    Ok(all.into_iter().next().unwrap_or_default())
}

/// The value at place `i` of replica `rank`: sums of up to 64 replicas are exact in bf16.
fn value(i: usize, rank: usize) -> f32 {
    ((i * 7 + rank * 3) % 5) as f32
}

fn link(
    collective: &dyn Collective,
    device: &Device,
    operation: &str,
    dtype: DType,
    length: usize,
) -> Result<Link, CollectiveError> {
    let (rank, world) = (collective.rank(), collective.world());
    let whole = length * world;
    // What this replica brings and what it must receive: the length, and the values by place.
    type Values<'a> = Box<dyn Fn(usize) -> f32 + 'a>;
    let sum = move |i: usize| (0..world).map(|rank| value(i, rank)).sum::<f32>();
    let (brought, expected): (usize, (usize, Values<'_>)) = match operation {
        "sum" => (whole, (whole, Box::new(sum))),
        "reduce_scatter" => (whole, (length, Box::new(move |i| sum(rank * length + i)))),
        "all_gather" => (length, (whole, Box::new(move |i| value(i % length, i / length)))),
        _ => (whole, (whole, Box::new(move |i| value(i, world - 1)))),
    };
    let values: Vec<f32> = (0..brought).map(|i| value(i, rank)).collect();
    // Converted on the host, so that nothing but the operation is checked.
    let data = TensorData::new(values, [brought]).convert_dtype(dtype);
    let tensor = Tensor::<1>::from_data(data, (device, dtype));
    let run = |tensor: Tensor<1>| match operation {
        "sum" => collective.sum(vec![tensor]).map(|mut sums| sums.remove(0)),
        "reduce_scatter" => collective.reduce_scatter(tensor),
        "all_gather" => collective.all_gather(tensor),
        _ => collective.broadcast(tensor, world - 1),
    };
    let failed = |error: &dyn std::fmt::Debug| CollectiveError::Transfer(format!("the device failed: {error:?}"));
    let received = run(tensor.clone())?.try_into_data().map_err(|error| failed(&error))?;
    let received: Vec<f32> = received.iter::<f32>().collect();
    let (length, expected) = expected;
    let right = received.len() == length && received.iter().enumerate().all(|(i, x)| *x == expected(i));

    device.sync().map_err(|error| failed(&error))?;
    collective.barrier()?;
    let start = Instant::now();
    for _ in 0..REPEATS {
        drop(run(tensor.clone())?);
    }
    device.sync().map_err(|error| failed(&error))?;
    let seconds = start.elapsed().as_secs_f64() / f64::from(REPEATS);
    let shared: Vec<(bool, f64)> = collective.share(&(right, seconds))?;
    let seconds = shared.iter().fold(0.0, |slowest: f64, (_, seconds)| slowest.max(*seconds));
    let bytes = (whole * dtype.size()) as u64;
    let part = match operation {
        "sum" => 2.0 * (world - 1) as f64 / world as f64,
        "reduce_scatter" | "all_gather" => (world - 1) as f64 / world as f64,
        _ => 1.0,
    };
    Ok(Link {
        operation: operation.into(),
        dtype: dtype.name().into(),
        bytes,
        passed: shared.iter().all(|(right, _)| *right),
        seconds,
        gigabytes: part * bytes as f64 / seconds / 1e9,
    })
}
