//! The store by itself, and a cache and a loader with one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use basic_core::DeviceSpec;
use basic_models::Llava;
use basic_models::checkpoint::{EncoderIdentity, PatchEncoder};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::*;
use crate::VisionCache;
use crate::loader::fixture::{Data, all, checkpoint, config, fixtures, preparer, start};
use crate::{HeldFeatures, LoaderConfig, LoaderPlan};

fn image(name: &str) -> ImageSource {
    ImageSource::File(fixtures().join("images").join(name))
}

fn images() -> Vec<ImageSource> {
    ["a.png", "b.png", "c.png", "d.png"].map(image).to_vec()
}

fn model(dtype: DType) -> Llava {
    checkpoint().load(dtype, &DeviceSpec::Cpu.open().unwrap()).unwrap()
}

/// A store of its own, as if another process had opened it.
fn apart(dir: &Path, limit: u64) -> Arc<FeatureStore> {
    Arc::new(FeatureStore { dir: dir.into(), limit, room: Mutex::default() })
}

fn store(dir: &Path) -> EncoderStore {
    EncoderStore::new(apart(dir, 1 << 30))
}

/// The features' bits, and how many images were encoded for them.
fn features(store: Option<EncoderStore>, model: &Llava, images: &[ImageSource]) -> (Vec<u8>, u64) {
    let mut cache = VisionCache::new(0).with_store(store);
    let features = cache.features(model, &checkpoint(), images).unwrap().unwrap();
    (features.into_data().as_bytes().to_vec(), cache.encoded())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
}

/// An encoder that is only its identity.
struct Named(EncoderIdentity);

impl PatchEncoder for Named {
    fn device(&self) -> Device {
        DeviceSpec::Cpu.open().unwrap()
    }
    fn patches(&self, pixels: Tensor<4>) -> Tensor<2> {
        let [n, ..] = pixels.dims();
        Tensor::ones([n * self.0.rows.unwrap_or(1), self.0.width], &PatchEncoder::device(self))
    }
    fn identity(&self) -> Option<EncoderIdentity> {
        Some(self.0.clone())
    }
}

fn named(rows: usize, width: usize) -> Named {
    Named(EncoderIdentity { text: "ones".into(), rows: Some(rows), width, dtype: DType::F32 })
}

fn small(dir: &Path, limit: u64) -> EncoderStore {
    let store = EncoderStore::new(apart(dir, limit));
    store.identify(&named(2, 3), &checkpoint().images);
    store
}

fn bytes_of(n: u32) -> ImageSource {
    ImageSource::Bytes { name: "x".into(), bytes: n.to_le_bytes().to_vec().into() }
}

#[test]
fn features_from_the_store_are_the_same_bits_and_nothing_is_encoded_again() {
    for dtype in [DType::F32, DType::BF16] {
        let (dir, model) = (tempfile::tempdir().unwrap(), model(dtype));
        let (computed, encoded) = features(None, &model, &images());
        assert_eq!(encoded, 4);
        assert_eq!(features(Some(store(dir.path())), &model, &images()), (computed.clone(), 4));
        assert_eq!(files(dir.path()).len(), 4);
        assert_eq!(features(Some(store(dir.path())), &model, &images()), (computed.clone(), 0));
        // An image is told by its bytes, not by its name.
        let renamed: Vec<ImageSource> = images()
            .iter()
            .enumerate()
            .map(|(i, image)| ImageSource::Bytes { name: format!("other {i}").into(), bytes: image.bytes().unwrap() })
            .collect();
        assert_eq!(features(Some(store(dir.path())), &model, &renamed), (computed, 0));
    }
}

struct Add;

impl ModuleMapper for Add {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor + 1e-3)
    }
}

#[test]
fn another_processor_layer_weight_or_type_is_another_key_and_a_saved_model_is_the_same() {
    let key = |model: &Llava, images: &ImageProcessor| {
        let store = store(Path::new("nowhere"));
        store.identify(model, images);
        store.look(&image("a.png")).unwrap().0.key
    };
    let (checkpoint, plain) = (checkpoint(), model(DType::F32));
    let first = key(&plain, &checkpoint.images);
    assert_eq!(key(&model(DType::F32), &checkpoint.images), first);
    assert_ne!(key(&plain, &checkpoint.images.clone().with_max_pixels(1000)), first);
    let padded = self::checkpoint().with_images(Some("pad"), None).unwrap();
    assert_ne!(key(&plain, &padded.images), first);
    assert_ne!(key(&model(DType::BF16), &checkpoint.images), first);
    let mut changed = model(DType::F32);
    changed.vision_tower = changed.vision_tower.map(&mut Add);
    assert_ne!(key(&changed, &checkpoint.images), first);
    let mut projector = model(DType::F32);
    projector.multi_modal_projector = projector.multi_modal_projector.map(&mut Add);
    assert_eq!(key(&projector, &checkpoint.images), first, "what comes behind the features does not count");
    // What a stage leaves is the next one's model: other files, the same encoder.
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("saved");
    checkpoint.save(&projector, &saved, DType::F32, false).unwrap();
    let later = basic_models::Checkpoint::open(&saved).unwrap();
    let device = DeviceSpec::Cpu.open().unwrap();
    assert_eq!(key(&later.load(DType::F32, &device).unwrap(), &later.images), first);
    let text = std::fs::read_to_string(saved.join("config.json")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let layer = value["vision_feature_layer"].as_i64().unwrap();
    value["vision_feature_layer"] = (layer - 1).into();
    std::fs::write(saved.join("config.json"), value.to_string()).unwrap();
    let other = basic_models::Checkpoint::open(&saved).unwrap();
    assert_ne!(key(&other.load(DType::F32, &device).unwrap(), &other.images), first);
}

#[test]
fn damaged_cut_and_foreign_files_are_ignored_and_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(DType::F32);
    let (computed, _) = features(Some(store(dir.path())), &model, &images());
    let kept = files(dir.path());
    let whole: Vec<Vec<u8>> = kept.iter().map(|path| std::fs::read(path).unwrap()).collect();
    type Damage<'a> = (&'a str, &'a dyn Fn(Vec<u8>) -> Vec<u8>);
    let damages: [Damage; 7] = [
        ("a bit of the features", &|mut bytes| {
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        }),
        ("the magic", &|mut bytes| {
            bytes[0] ^= 1;
            bytes
        }),
        ("the rows", &|mut bytes| {
            bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
            bytes
        }),
        ("cut", &|bytes| bytes[..bytes.len() / 2].to_vec()),
        ("cut within the header", &|bytes| bytes[..20].to_vec()),
        ("empty", &|_| Vec::new()),
        ("longer", &|bytes| [bytes, vec![0]].concat()),
    ];
    for (what, damage) in damages {
        std::fs::write(&kept[0], damage(whole[0].clone())).unwrap();
        assert_eq!(features(Some(store(dir.path())), &model, &images()), (computed.clone(), 1), "{what}");
        assert_eq!(std::fs::read(&kept[0]).unwrap(), whole[0], "{what}");
    }
    // Another image's whole file under this one's name.
    std::fs::copy(&kept[1], &kept[0]).unwrap();
    assert_eq!(features(Some(store(dir.path())), &model, &images()), (computed.clone(), 1));
    // A folder there can be neither read nor replaced: the run goes on, and nothing more is written.
    std::fs::remove_file(&kept[0]).unwrap();
    std::fs::create_dir(&kept[0]).unwrap();
    let apart = store(dir.path());
    assert_eq!(features(Some(apart.clone()), &model, &images()), (computed, 1));
    assert!(apart.problem().unwrap().contains(&kept[0].display().to_string()));
}

proptest! {
    #[test]
    fn no_file_makes_it_panic_or_passes_for_features(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let dir = tempfile::tempdir().unwrap();
        let store = small(dir.path(), 1 << 20);
        let (known, _) = store.look(&bytes_of(1)).unwrap();
        let path = store.0.store.path(&known.key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        prop_assert!(store.look(&bytes_of(1)).unwrap().0.features.is_none());
    }
}

#[test]
fn nothing_is_written_beyond_the_limit_and_nothing_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let size = (HEADER + 24) as u64;
    let fill = |store: &EncoderStore, images: std::ops::Range<u32>| {
        for image in images {
            let (known, _) = store.look(&bytes_of(image)).unwrap();
            store.keep(&known.key, &[0; 24]);
        }
        files(dir.path()).len() as u64
    };
    assert_eq!(fill(&small(dir.path(), 3 * size + 1), 0..9), 3);
    // Another process counts what is there; what is held already can be written again.
    assert_eq!(fill(&small(dir.path(), 5 * size), 0..9), 5);
    assert_eq!(fill(&small(dir.path(), 5 * size), 0..9), 5);
    assert_eq!(fill(&small(dir.path(), 0), 9..12), 5);
    // And two that take turns, each with its own count, keep within a share of the limit.
    let (one, two) = (small(dir.path(), 100 * size), small(dir.path(), 100 * size));
    for image in 100..300 {
        fill(if image % 2 == 0 { &one } else { &two }, image..image + 1);
    }
    let count = files(dir.path()).len() as u64;
    assert!((100..=100 + 100 / COUNT_EVERY + 2).contains(&count), "{count}");
}

#[test]
fn features_of_another_size_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = small(dir.path(), 1 << 20);
    let (known, _) = store.look(&bytes_of(1)).unwrap();
    store.keep(&known.key, &[0; 20]);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn several_stores_may_write_and_read_the_same_folder_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(DType::F32);
    let (computed, _) = features(None, &model, &images());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..4 {
                    assert_eq!(features(Some(store(dir.path())), &model, &images()).0, computed);
                }
            });
        }
    });
    assert_eq!(files(dir.path()).len(), 4, "no temporary file is left");
    assert_eq!(features(Some(store(dir.path())), &model, &images()), (computed, 0));
}

#[test]
fn a_folder_is_opened_once_and_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("not/there/yet");
    let first = FeatureStore::open(&at, 1).unwrap();
    assert!(!at.exists(), "it is made when something is written");
    assert!(Arc::ptr_eq(&first, &FeatureStore::open(&at, 1).unwrap()));
    assert!(!Arc::ptr_eq(&first, &FeatureStore::open(&at, 2).unwrap()));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(FeatureStore::open(&file, 1).unwrap_err().to_string().contains("file"));
}

#[test]
fn the_loaders_workers_decode_no_image_whose_features_the_store_has() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(DType::F32);
    let run = |store: Option<EncoderStore>, identify: bool| {
        let mut cache = VisionCache::new(0).with_store(store.clone());
        if let (Some(store), true) = (store, identify) {
            store.identify(&model, &checkpoint().images);
        }
        let held = HeldFeatures { own: cache.keys(), ..HeldFeatures::default() };
        let config = LoaderConfig { prefetch: 0, ..config(2) };
        let (preparer, plan) = (preparer(&config), LoaderPlan { held: vec![held], ..LoaderPlan::new(1, 6) });
        let steps = all(&mut start(Data::new(6, &[]), 6, &config, plan, 0));
        let micro = || steps.iter().flat_map(|step| &step.micro);
        let images = micro().flat_map(|micro| micro.rows.iter().flatten().flat_map(|sample| &sample.images));
        let decoded = images.filter(|image| image.pixels.is_some()).count();
        let features = micro().filter_map(|micro| micro.encoded(&preparer, &model, &mut cache).unwrap().features);
        let features: Vec<Vec<f32>> = features.map(|found| found.into_data().try_to_vec::<f32>().unwrap()).collect();
        (features, decoded, cache.encoded())
    };
    let (computed, decoded, encoded) = run(None, false);
    assert_eq!((decoded, encoded), (6, 4), "six images, four of them different");
    assert_eq!(run(Some(store(dir.path())), true), (computed.clone(), 6, 4));
    assert_eq!(run(Some(store(dir.path())), true), (computed.clone(), 0, 0));
    // Before the encoder is known the workers decode, and the features are still the store's.
    assert_eq!(run(Some(store(dir.path())), false), (computed, 6, 0));
}
