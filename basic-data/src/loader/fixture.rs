//! A small data set with all kinds of samples, good and bad, and loaders over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use basic_models::Checkpoint;
use basic_models::processor::{Message, Role, Style};

use super::{Loader, LoaderPlan, Preparer, Sampler, StepSamples};
use crate::{DataError, DrawOrder, ImageSource, LoaderConfig, Sample, Samples};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

pub fn checkpoint() -> Checkpoint {
    Checkpoint::open(fixtures().join("plain")).unwrap()
}

/// What is wrong with a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    MissingImage,
    NoAnswer,
    Long,
    Panic,
    // Not of one sample: the whole file is gone.
    File,
}

/// Samples in turns: one image and a caption, text of two turns, two images; `faults` replace some.
#[derive(Debug, Default)]
pub struct Data {
    pub len: usize,
    pub faults: Vec<(usize, Fault)>,
    pub read: AtomicUsize,
    pub slow: Duration,
}

impl Data {
    pub fn new(len: usize, faults: &[(usize, Fault)]) -> Self {
        Self { len, faults: faults.to_vec(), ..Self::default() }
    }
}

pub fn sample(index: usize, fault: Option<Fault>) -> Sample {
    let image = |name: &str| ImageSource::File(fixtures().join("images").join(name));
    let words = |n: usize| vec!["the dog"; n].join(" ");
    let (mut images, mut turns) = match index % 3 {
        0 => {
            (vec![image(["a.png", "b.png"][index % 2])], vec!["<image>\nwhat is it?".to_owned(), words(index % 5 + 1)])
        }
        1 => (vec![], vec!["is it?".into(), words(2), words(index % 7), "it is".into()]),
        _ => (vec![image("c.png"), image("d.png")], vec!["<image> or <image>?".into(), words(index % 4 + 2)]),
    };
    match fault {
        Some(Fault::MissingImage) => (images, turns[0]) = (vec![image("none.png")], "<image>\nwhat?".into()),
        Some(Fault::NoAnswer) => turns[1] = String::new(),
        Some(Fault::Long) => turns[1] = words(2500),
        _ => {}
    }
    let role = |i: usize| if i.is_multiple_of(2) { Role::User } else { Role::Assistant };
    let messages = turns.into_iter().enumerate().map(|(i, text)| Message::new(role(i), text)).collect();
    Sample { file: Path::new("data.json").into(), place: index.to_string(), images, messages, dropped_turns: 0 }
}

impl Samples for Data {
    fn len(&self) -> usize {
        self.len
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        self.read.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.slow);
        let fault = self.faults.iter().find(|(at, _)| *at == index).map(|(_, fault)| *fault);
        match fault {
            Some(Fault::Panic) => panic!("a defect at {index}"),
            Some(Fault::File) => Err(DataError::Io { path: "data.json".into(), source: std::io::Error::other("gone") }),
            fault => Ok(sample(index, fault)),
        }
    }
}

pub fn config(workers: usize) -> LoaderConfig {
    LoaderConfig { workers: Some(workers), order: DrawOrder::Sequential, ..LoaderConfig::default() }
}

pub fn preparer(config: &LoaderConfig) -> Preparer {
    Preparer::new(&checkpoint(), Style::vicuna_v1(), config).unwrap()
}

pub fn start(data: Data, batch: usize, config: &LoaderConfig, plan: LoaderPlan, first: usize) -> Loader {
    let preparer = preparer(config);
    let sampler = Sampler::new(config.order, &data, batch, 5, preparer.visual_tokens());
    Loader::start(Arc::new(data), Arc::new(preparer), sampler, config, plan, first).unwrap()
}

pub fn all(loader: &mut Loader) -> Vec<StepSamples> {
    std::iter::from_fn(|| loader.next().unwrap()).collect()
}
