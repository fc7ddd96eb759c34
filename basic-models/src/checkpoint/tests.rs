//! Tests of checkpoints on disk: written, read back, and damaged.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use basic_core::DeviceSpec;
use burn::tensor::{DType, Device, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

use super::write::{gather, write_outgoing};
use super::*;
use crate::config::{LlavaConfig, VisionConfig, VisionFamily};
use crate::nn::{Decoder, InitScheme, Llava, seeded_init};

fn config() -> LlavaConfig {
    LlavaConfig::from_json(
        r#"{"model_type": "llava", "image_token_index": 39,
            "text_config": {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
            "vision_config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}}"#,
    )
    .unwrap()
}

fn device() -> Device {
    DeviceSpec::Cpu.open().unwrap()
}

fn model(device: &Device) -> Llava {
    seeded_init(config().init(device), InitScheme::Normal { std: 0.3 }, 5, device)
}

/// Writes `model.safetensors` or its shards.
fn write(model: &Llava, dir: &Path, options: &SaveOptions) {
    let staged = StagedDir::new(dir, true).unwrap();
    write_outgoing(&staged, gather(model, "", FloatType::of(options.dtype)), Layout::Llava, options).unwrap();
    staged.commit().unwrap();
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.cast(DType::F32).try_into_vec_as::<f32>().unwrap()
}

/// The values of all parameters, in the order of their names.
fn some(model: &Llava) -> Vec<Vec<f32>> {
    let named: Vec<(String, Vec<f32>)> = all(model);
    assert!(named.len() > 40);
    named.into_iter().map(|(_, values)| values).collect()
}

/// All parameters in order, by writing and parsing them: f32 represents the values of every type.
fn all(model: &Llava) -> Vec<(String, Vec<f32>)> {
    let dir = tempfile::tempdir().unwrap();
    write(model, &dir.path().join("all"), &SaveOptions::new(DType::F32));
    let bytes = fs::read(dir.path().join("all/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut named: Vec<(String, Vec<f32>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (chunks, _) = view.data().as_chunks::<4>();
            (name, chunks.iter().map(|b| f32::from_le_bytes(*b)).collect())
        })
        .collect();
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    named
}

#[test]
fn a_model_comes_back_from_every_type_in_every_type() {
    let device = device();
    let model = model(&device);
    let exact = some(&model);
    let dir = tempfile::tempdir().unwrap();
    let round = |dtype: DType, x: f32| match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    };
    for on_disk in [DType::F32, DType::F16, DType::BF16] {
        let out = dir.path().join(on_disk.name());
        write(&model, &out, &SaveOptions::new(on_disk));
        let files = TensorFiles::open(&out, Layout::Llava).unwrap();
        for in_memory in [DType::F32, DType::F16, DType::BF16] {
            let loaded = files.load(config().init(&device), "", in_memory, &device).unwrap();
            assert_eq!(loaded.dtype(), in_memory);
            for (ours, exact) in some(&loaded).iter().zip(&exact) {
                assert_eq!(ours.len(), exact.len());
                for (ours, exact) in ours.iter().zip(exact) {
                    assert_eq!(*ours, round(in_memory, round(on_disk, *exact)));
                }
            }
        }
    }
}

#[test]
fn a_linear_weight_is_transposed_on_disk() {
    let device = device();
    let model = model(&device);
    let head = model.lm_head.as_ref().unwrap().weight.val(); // [d, V]
    let [d, rows] = head.dims();
    let named = all(&model);
    let (_, on_disk) = named.iter().find(|(name, _)| name == "language_model.lm_head.weight").unwrap();
    let ours = values(head);
    assert!((0..rows).all(|r| (0..d).all(|c| on_disk[r * d + c] == ours[c * rows + r])));
}

#[test]
fn fused_matrices_are_written_and_read_as_rows_in_order() {
    let device = device();
    let model = model(&device);
    let dir = tempfile::tempdir().unwrap();
    write(&model, dir.path(), &SaveOptions { fused: true, ..SaveOptions::new(DType::F32) });
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let layer = "language_model.model.layers.1";
    // 4 query heads and 2 key and value heads of width 6; gate and up have 32 rows each.
    assert_eq!(file.tensor(&format!("{layer}.self_attn.qkv_proj.weight")).unwrap().shape(), [48, 24]);
    assert_eq!(file.tensor(&format!("{layer}.mlp.gate_up_proj.weight")).unwrap().shape(), [64, 24]);
    assert!(!file.names().iter().any(|n| n.starts_with("language_model") && n.contains(".q_proj")));
    assert!(file.names().iter().any(|n| n.starts_with("vision_tower") && n.contains(".q_proj")));
    let files = TensorFiles::open(dir.path(), Layout::Llava).unwrap();
    let empty = config().init(&device);
    assert_eq!(files.unexpected(&empty, ""), Vec::<String>::new());
    assert_eq!(some(&files.load(empty, "", DType::F32, &device).unwrap()), some(&model));
}

#[test]
fn a_fused_matrix_of_the_wrong_size_is_a_wrong_shape_said_once() {
    let device = device();
    let dir = tempfile::tempdir().unwrap();
    write(&model(&device), dir.path(), &SaveOptions { fused: true, ..SaveOptions::new(DType::F32) });
    let mut larger = config();
    larger.text_config.num_key_value_heads = Some(4);
    let files = TensorFiles::open(dir.path(), Layout::Llava).unwrap();
    let error = files.load(larger.init(&device), "", DType::F32, &device).unwrap_err();
    let CheckpointError::Shapes { shapes, .. } = error else { panic!("{error}") };
    let expected =
        |layer| format!("language_model.model.layers.{layer}.self_attn.qkv_proj.weight is [48, 24], not [72, 24]");
    assert_eq!(shapes, [expected(0), expected(1)]);
}

#[test]
fn shards_hold_at_most_what_was_asked_for_and_their_index_lists_all() {
    let device = device();
    let model = model(&device);
    let dir = tempfile::tempdir().unwrap();
    write(&model, dir.path(), &SaveOptions { shard_size: Some(8000), ..SaveOptions::new(DType::BF16) });
    let index = fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let mut shards: Vec<&str> = map.values().map(|v| v.as_str().unwrap()).collect();
    shards.sort_unstable();
    shards.dedup();
    assert!(shards.len() > 3, "{shards:?}");
    let mut total = 0;
    for (number, shard) in shards.iter().enumerate() {
        assert_eq!(*shard, format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len()));
        let bytes = fs::read(dir.path().join(shard)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let held: usize = file.tensors().iter().map(|(_, view)| view.data().len()).sum();
        assert!(held <= 8000 || file.len() == 1, "{shard}: {held} bytes");
        assert!(file.names().iter().all(|name| map[*name] == *shard));
        total += held;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["metadata"]["total_parameters"], total / 2);
    let files = TensorFiles::open(dir.path(), Layout::Llava).unwrap();
    files.load(config().init(&device), "", DType::F32, &device).unwrap();
}

#[test]
fn a_table_that_grows_gets_rows_at_the_mean_of_the_old() {
    let device = device();
    let model = model(&device);
    let dir = tempfile::tempdir().unwrap();
    write(&model, dir.path(), &SaveOptions::new(DType::F32));
    let mut larger = config();
    larger.text_config.vocab_size = 43;
    let open = || TensorFiles::open(dir.path(), Layout::Llava).unwrap();
    let load = |files: TensorFiles| files.load(larger.init(&device), "", DType::F32, &device);
    // Only if it was requested, and only from the current size.
    for rows in [None, Some((41, 43)), Some((40, 42))] {
        assert!(matches!(load(open().growing(rows)), Err(CheckpointError::Shapes { .. })), "{rows:?}");
    }
    let loaded = load(open().growing(Some((40, 43)))).unwrap();
    let (old, new) = (values(model.language_model.table()), values(loaded.language_model.table()));
    let mean = |column: usize| (0..40).map(|row| f64::from(old[row * 24 + column])).sum::<f64>() / 40.0;
    assert_eq!(&new[..old.len()], &old[..]);
    for row in 40..43 {
        assert!((0..24).all(|c| (f64::from(new[row * 24 + c]) - mean(c)).abs() < 1e-6), "row {row}");
    }
    let head = |model: &Llava| values(model.lm_head.as_ref().unwrap().weight.val().transpose());
    let (old, new) = (head(&model), head(&loaded));
    assert_eq!(&new[..old.len()], &old[..]);
    let mean = (0..40).map(|row| f64::from(old[row * 24 + 7])).sum::<f64>() / 40.0;
    assert!((f64::from(new[42 * 24 + 7]) - mean).abs() < 1e-6);
}

#[test]
fn what_an_index_promises_must_be_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    write(&model(&device()), &path, &SaveOptions { shard_size: Some(8000), ..SaveOptions::new(DType::F16) });
    let index = path.join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    let error = || TensorFiles::open(&path, Layout::Llava).unwrap_err().to_string();
    let change = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        change(&mut value);
        fs::write(&index, value.to_string()).unwrap();
    };
    change(&|v| v["weight_map"]["language_model.model.ghost"] = "model-00002-of-00099.safetensors".into());
    assert!(error().contains("model-00002-of-00099.safetensors"), "{}", error());
    let first = {
        let value: Value = serde_json::from_str(&text).unwrap();
        value["weight_map"]["language_model.lm_head.weight"].as_str().unwrap().to_string()
    };
    change(&|v| v["weight_map"]["language_model.model.ghost"] = first.as_str().into());
    assert!(error().contains(&format!("{first} does not hold tensor language_model.model.ghost")), "{}", error());
    change(&|v| v["weight_map"]["language_model.lm_head.weight"] = "../../etc/passwd".into());
    assert!(error().contains("language_model.lm_head.weight") && error().contains("no"), "{}", error());
    change(&|v| v["weight_map"] = serde_json::json!({}));
    assert!(error().contains("lists no tensor"), "{}", error());
    // The same tensor in a second shard.
    fs::write(&index, &text).unwrap();
    let second = path.join("extra.safetensors");
    fs::copy(path.join(&first), &second).unwrap();
    change(&|v| {
        v["weight_map"]["language_model.lm_head.weight"] = "extra.safetensors".into();
    });
    let said = error();
    assert!(said.contains(&first) && said.contains("extra.safetensors") && said.contains("both hold"), "{said}");
}

#[test]
fn tensors_that_dinov2_lacks_are_named_as_its_files_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let device = device();
    write(&model(&device), dir.path(), &SaveOptions::new(DType::F32));
    let files = TensorFiles::open(dir.path(), Layout::Llava).unwrap();
    let mut config = config();
    config.vision_config.family = VisionFamily::of(Some("dinov2")).unwrap().0;
    config.vision_config.num_hidden_layers = 2;
    let error = files.load(config.init(&device), "", DType::F32, &device).unwrap_err().to_string();
    for name in
        ["embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1", "layer.1.attention.attention.query.bias"]
    {
        assert!(error.contains(name), "{error}");
    }
    assert!(!error.contains("self_attn"), "{error}");
    // With CLIP's own names if the encoder is CLIP's.
    config.vision_config.family = VisionConfig::default().family;
    let error = files.load(config.init(&device), "", DType::F32, &device).unwrap_err().to_string();
    assert!(error.contains("encoder.layers.1.self_attn.q_proj.bias"), "{error}");
}

#[test]
fn types_that_are_not_weights_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let device = device();
    write(&model(&device), dir.path(), &SaveOptions::new(DType::F32));
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    // Replaced by an integer type of the same width, so that the file stays valid.
    let at = bytes.windows(22).position(|w| w == b"patch_embedding.weight").unwrap();
    let f32_at = at + bytes[at..].windows(3).position(|w| w == b"F32").unwrap();
    for dtype in [b"I32", b"U32"] {
        let mut changed = bytes.clone();
        changed[f32_at..f32_at + 3].copy_from_slice(dtype);
        fs::write(&path, changed).unwrap();
        let files = TensorFiles::open(dir.path(), Layout::Llava).unwrap();
        let error = files.load(config().init(&device), "", DType::F32, &device).unwrap_err().to_string();
        assert!(error.contains("patch_embedding.weight is") && error.contains("model.safetensors"), "{error}");
        assert!(error.contains(std::str::from_utf8(dtype).unwrap()), "{error}");
    }
}

/// A decoder so small that the header is most of its file.
fn small(dir: &Path, fused: bool) -> (Decoder, Vec<u8>) {
    let mut config = config().text_config;
    (config.vocab_size, config.hidden_size, config.intermediate_size) = (4, 8, 4);
    config.num_hidden_layers = 1;
    let device = device();
    let module = seeded_init(config.init(&device), InitScheme::Normal { std: 0.3 }, 1, &device);
    let staged = StagedDir::new(dir, true).unwrap();
    let options = SaveOptions { fused, ..SaveOptions::new(DType::F16) };
    let tensors = gather(&module, "language_model", FloatType::F16);
    write_outgoing(&staged, tensors, Layout::Decoder, &options).unwrap();
    staged.commit().unwrap();
    (config.init(&device), fs::read(dir.join("model.safetensors")).unwrap())
}

/// Opens and loads. It must only return soon, and errors must have a message.
fn survives(dir: &Path, empty: Decoder) -> Result<(), TestCaseError> {
    let started = Instant::now();
    let loaded = TensorFiles::open(dir, Layout::Decoder)
        .and_then(|files| files.load(empty, "language_model", DType::F32, &device()));
    if let Err(error) = loaded {
        prop_assert!(error.to_string().len() > 10);
    }
    prop_assert!(started.elapsed() < Duration::from_secs(10));
    Ok(())
}

/// The peak of this process's memory in bytes; 0 if the system does not report it.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kib.unwrap_or_default() * 1024
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_safetensors_never_panic_nor_eat_memory(
        fused: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        in_header in prop::bool::weighted(0.8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (empty, mut bytes) = small(dir.path(), fused);
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let range = if in_header { 8 + header } else { bytes.len() };
        for (at, byte) in &changes {
            // Half of the changes replace digits by digits, so that the header stays JSON.
            let at = at.index(range);
            bytes[at] = if bytes[at].is_ascii_digit() { b'0' + byte % 10 } else { *byte };
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        survives(dir.path(), empty)?;
        prop_assert!(peak() < 2 << 30);
    }

    #[test]
    fn damaged_indices_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (empty, _) = small(dir.path(), false);
        fs::rename(dir.path().join("model.safetensors"), dir.path().join("a.safetensors")).unwrap();
        let mut index = br#"{"metadata": {"total_size": 10}, "weight_map": {"model.norm.weight": "a.safetensors"}}"#.to_vec();
        for (at, byte) in &changes {
            let at = at.index(index.len());
            index[at] = *byte;
        }
        fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        survives(dir.path(), empty)?;
    }

    #[test]
    fn damaged_pytorch_files_never_panic_nor_eat_memory(
        zip: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        // The format since PyTorch 1.6 (with many tensors in shards), and the one before.
        let name = if zip { "pytorch_model-00002-of-00002.bin" } else { "mm_projector.bin" };
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/original");
        let mut bytes = fs::read(original.join(name)).unwrap();
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pytorch_model.bin");
        fs::write(&path, bytes).unwrap();
        let started = Instant::now();
        if let Ok(files) = TensorFiles::open(dir.path(), Layout::Llava) {
            // Every tensor in the file is read, whatever the network would use.
            let slots: Vec<Slot> = files
                .list()
                .map(|(name, entry)| Slot { name: name.into(), shape: entry.shape.clone(), transposed: false })
                .collect();
            if let Ok(tensors) = files.outgoing(&slots, FloatType::F32, &DeviceSpec::Cpu.open().unwrap()) {
                let staged = StagedDir::new(&dir.path().join("out"), false).unwrap();
                let written = write_outgoing(&staged, tensors, Layout::Llava, &SaveOptions::new(DType::F32));
                prop_assert!(written.is_ok() || written.is_err_and(|error| error.to_string().contains("pytorch_model.bin")));
            }
        }
        prop_assert!(started.elapsed() < Duration::from_secs(10));
        prop_assert!(peak() < 2 << 30);
    }
}
