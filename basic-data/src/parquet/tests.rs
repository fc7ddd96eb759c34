use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::ParquetData;
use crate::{DataError, ImageSource, Samples};

/// Writes a table in row groups of `rows` rows.
fn written(path: &Path, columns: &[(&str, ArrayRef)], rows: usize) -> PathBuf {
    let fields: Vec<Field> = columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns.iter().map(|(_, c)| c.clone()).collect()).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path.to_path_buf()
}

fn text(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn bytes(values: &[Option<&[u8]>]) -> ArrayRef {
    Arc::new(BinaryArray::from(values.to_vec()))
}

fn structure(fields: &[(&str, ArrayRef)]) -> StructArray {
    let names: Fields = fields.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    StructArray::new(names, fields.iter().map(|(_, array)| array.clone()).collect(), None)
}

/// Lists of the given lengths, over `items`.
fn lists(items: ArrayRef, lengths: &[usize]) -> ArrayRef {
    let field = Arc::new(Field::new("item", items.data_type().clone(), true));
    let mut ends = vec![0];
    lengths.iter().for_each(|length| ends.push(ends[ends.len() - 1] + *length as i32));
    Arc::new(ListArray::new(field, OffsetBuffer::new(ends.into()), items, None))
}

fn open(path: &PathBuf) -> Result<ParquetData, DataError> {
    ParquetData::open(std::slice::from_ref(path), None, None)
}

fn content(image: &ImageSource) -> String {
    String::from_utf8(image.bytes().unwrap().to_vec()).unwrap()
}

fn hf_images() -> ArrayRef {
    let data = bytes(&[Some(b"zero"), None, Some(b"two")]);
    Arc::new(structure(&[("bytes", data), ("path", text(&[None, Some("one.png"), Some("two.png")]))]))
}

#[test]
fn images_are_bytes_or_paths_alone_or_in_structures_or_lists() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("one.png"), "one").unwrap();
    let captions = text(&[Some("a"), Some("b"), Some("c")]);
    let path = |name: &str| dir.path().join(name);
    let raw = bytes(&[Some(b"zero"), Some(b"one"), Some(b"two")]);
    let names = text(&[Some("one.png"), Some("one.png"), Some("one.png")]);
    for (name, column, key, images) in [
        ("hf.parquet", hf_images(), "image", ["zero", "one", "two"]),
        ("raw.parquet", raw.clone(), "image", ["zero", "one", "two"]),
        ("names.parquet", names, "image", ["one", "one", "one"]),
        ("list.parquet", lists(raw, &[1, 1, 1]), "images", ["zero", "one", "two"]),
        ("hf-list.parquet", lists(hf_images(), &[1, 1, 1]), "images", ["zero", "one", "two"]),
    ] {
        let data = open(&written(&path(name), &[(key, column), ("caption", captions.clone())], 2)).unwrap();
        assert_eq!(data.len(), 3);
        for index in [2, 0, 1] {
            let sample = data.sample(index).unwrap();
            assert_eq!(sample.images.iter().map(content).collect::<Vec<_>>(), [images[index]], "{name}");
            assert_eq!(sample.messages[1].content, ["a", "b", "c"][index]);
            assert_eq!(data.outline(index).unwrap().messages, sample.messages);
            assert_eq!(data.outline(index).unwrap().images.len(), 1);
        }
    }
}

#[test]
fn turns_are_read_from_every_layout_and_lists_may_be_empty() {
    let dir = tempfile::tempdir().unwrap();
    let pair = |a, b| {
        structure(&[(a, text(&[Some("q"), Some("q2"), Some("q3")])), (b, text(&[Some("a"), Some("a2"), Some("a3")]))])
    };
    let texts = lists(Arc::new(pair("user", "assistant")), &[2, 1]);
    let images = lists(bytes(&[Some(b"one"), Some(b"two")]), &[0, 2]);
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![41, 42]));
    let data =
        open(&written(&dir.path().join("a.parquet"), &[("id", ids), ("images", images), ("texts", texts)], 9)).unwrap();
    let sample = data.sample(0).unwrap();
    assert_eq!(sample.messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>(), ["q", "a", "q2", "a2"]);
    assert_eq!((sample.images.len(), sample.place.as_str()), (0, "0 (id 41)"));
    let sample = data.sample(1).unwrap();
    assert_eq!(sample.messages[0].content, "<image>\n<image>\nq3");
    let names: Vec<_> = sample.images.iter().map(|image| image.name().to_path_buf()).collect();
    assert_ne!(names[0], names[1], "no two images have one name");

    let chat =
        structure(&[("role", text(&[Some("user"), Some("assistant")])), ("content", text(&[Some("hi"), Some("ho")]))]);
    let data = open(&written(&dir.path().join("b.parquet"), &[("messages", lists(Arc::new(chat), &[2]))], 9)).unwrap();
    assert_eq!(data.sample(0).unwrap().messages[1].content, "ho");
}

#[test]
fn windows_of_a_large_row_group_hold_the_right_rows() {
    let dir = tempfile::tempdir().unwrap();
    // 40 images of 1 MiB in one group: three windows.
    let images: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; 1 << 20]).collect();
    let rows: Vec<Option<&[u8]>> = images.iter().map(|image| Some(&image[..])).collect();
    let captions: Vec<String> = (0..40).map(|i| format!("caption {i}")).collect();
    let captions: Vec<Option<&str>> = captions.iter().map(|caption| Some(caption.as_str())).collect();
    let image = structure(&[("bytes", bytes(&rows)), ("path", text(&[None; 40]))]);
    let path = written(&dir.path().join("a.parquet"), &[("image", Arc::new(image)), ("text", text(&captions))], 100);
    let data = open(&path).unwrap();
    assert!(data.windows.files[0].window_rows(0, &data.windows.files[0].leaves(0, false).0) < 40);
    for index in [39, 0, 13, 14, 27, 26, 1] {
        let sample = data.sample(index).unwrap();
        assert_eq!(sample.messages[1].content, format!("caption {index}"));
        assert!(sample.images[0].bytes().unwrap().iter().all(|byte| usize::from(*byte) == index));
        let outline = data.outline(index).unwrap();
        assert_eq!((outline.images.len(), outline.images[0].bytes().unwrap().len()), (1, 0));
    }
    assert!(data.windows.files[0].leaves(0, true).1[0], "an outline leaves heavy images out");
}

#[test]
fn many_threads_read_the_same_rows() {
    use rayon::prelude::*;
    let dir = tempfile::tempdir().unwrap();
    let captions: Vec<String> = (0..500).map(|i| format!("caption {i}")).collect();
    let captions: Vec<Option<&str>> = captions.iter().map(|caption| Some(caption.as_str())).collect();
    let images = vec![Some(&b"x"[..]); 500];
    let columns = [("image", bytes(&images)), ("text", text(&captions))];
    let files = [written(&dir.path().join("a"), &columns, 7), written(&dir.path().join("b"), &columns, 100)];
    let data = ParquetData::open(&files, None, Some(900)).unwrap();
    assert_eq!(data.len(), 900);
    (0..900usize).into_par_iter().for_each(|index| {
        let index = index * 7919 % 900;
        assert_eq!(data.sample(index).unwrap().messages[1].content, format!("caption {}", index % 500));
    });
}

#[test]
fn wrong_columns_and_rows_say_what_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let caption = || ("caption", text(&[Some("a")]));
    for (columns, mention) in [
        (vec![("image", numbers.clone()), caption()], "\"image\" is Int64"),
        (vec![("caption", numbers.clone())], "\"caption\" is Int64: expected text"),
        (vec![("conversations", numbers.clone())], "\"conversations\" is Int64: expected a list"),
        (vec![("label", numbers.clone())], "its columns are label"),
        (
            vec![("image", Arc::new(structure(&[("data", numbers.clone())])) as ArrayRef), caption()],
            "\"image\" is Struct",
        ),
    ] {
        let error = open(&written(&path, &columns, 9)).unwrap_err().to_string();
        assert!(error.contains("a.parquet") && error.contains(mention), "{error}");
    }
    let nothing = structure(&[("bytes", bytes(&[None])), ("path", text(&[None]))]);
    for (image, mention) in [
        (Arc::new(nothing) as ArrayRef, "no image"),
        (text(&[Some(" ")]), "no image"),
        (text(&[Some("../x.png")]), "leaves its folder"),
        (text(&[Some("gone.png")]), "does not exist"),
        (text(&[None]), "no image"),
    ] {
        let error = open(&written(&path, &[("image", image), caption()], 9)).unwrap().sample(0).unwrap_err();
        assert!(error.is_sample() && error.to_string().contains("a.parquet: sample 0"), "{error}");
        assert!(error.to_string().contains(mention), "{error}");
    }
    let error = open(&written(&path, &[("caption", text(&[]))], 9)).unwrap_err();
    assert!(matches!(error, DataError::Empty(_)), "{error}");
}

#[test]
fn a_damaged_file_is_an_error_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let captions: Vec<Option<&str>> = vec![Some("a caption of some length"); 50];
    let image = structure(&[("bytes", bytes(&[Some(&b"pixels"[..]); 50])), ("path", text(&[None; 50]))]);
    let columns = [("image", Arc::new(image) as ArrayRef), ("caption", text(&captions))];
    let path = written(&dir.path().join("a.parquet"), &columns, 20);
    let whole = std::fs::read(&path).unwrap();
    for keep in (0..whole.len()).step_by(17) {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("a.parquet"), "{error}");
    }
    let mut state = 1u64;
    for _ in 0..2000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut bytes = whole.clone();
        let at = (state >> 33) as usize % bytes.len();
        bytes[at] ^= (state >> 20) as u8 | 1;
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(data) = open(&path) {
            for index in 0..data.len().min(60) {
                let _ = data.sample(index);
            }
        }
    }
}

#[test]
fn a_row_takes_its_images_from_whichever_column_has_some_and_null_types_are_null() {
    let dir = tempfile::tempdir().unwrap();
    let null = |len: usize| Arc::new(arrow_array::NullArray::new(len)) as ArrayRef;
    let alone = structure(&[("bytes", bytes(&[Some(b"zero"), None, None])), ("path", null(3))]);
    let several = lists(bytes(&[Some(b"one"), Some(b"two")]), &[0, 2, 0]);
    let turns: Vec<String> = [1, 2, 0]
        .map(|places| {
            let question = "<image>\n".repeat(places) + "q";
            format!(r#"[{{"from": "human", "value": {question:?}}}, {{"from": "gpt", "value": "a"}}]"#)
        })
        .into();
    let turns: Vec<Option<&str>> = turns.iter().map(|turns| Some(turns.as_str())).collect();
    let columns = [
        ("image", Arc::new(alone) as ArrayRef),
        ("images", several),
        ("conversations", text(&turns)),
        ("text", null(3)),
    ];
    let data = open(&written(&dir.path().join("a.parquet"), &columns, 9)).unwrap();
    let images = |row| data.sample(row).unwrap().images.iter().map(content).collect::<Vec<_>>();
    assert_eq!(images(0), ["zero"]);
    assert_eq!(images(1), ["one", "two"]);
    assert_eq!(data.sample(1).unwrap().messages[1].content, "a");
    assert!(images(2).is_empty(), "neither column has one");
}

#[test]
fn turns_may_be_json_or_a_structure_of_lists_and_what_is_neither_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let list = r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
    let twice = serde_json::to_string(list).unwrap();
    let record = format!(r#"{{"messages": {list}}}"#);
    let rows = text(&[Some(list), Some(&twice), Some(&record), Some("[{'role': 'user'}]"), Some("3")]);
    let data = open(&written(&path, &[("messages", rows)], 9)).unwrap();
    for row in 0..3 {
        assert_eq!(data.sample(row).unwrap().messages[1].content, "a", "{row}");
    }
    assert!(data.sample(3).unwrap_err().to_string().contains("json.dumps"));
    assert!(data.sample(4).unwrap_err().to_string().contains("no list of turns"));
    let from = lists(text(&[Some("human"), Some("gpt")]), &[2]);
    let value = lists(text(&[Some("q"), Some("a")]), &[2]);
    let columns = Arc::new(structure(&[("from", from), ("value", value)])) as ArrayRef;
    let data = open(&written(&path, &[("conversations", columns)], 9)).unwrap();
    assert_eq!(data.sample(0).unwrap().messages[1].content, "a");
}

/// Writes texts with these properties.
fn packed(path: &Path, values: &[&str], properties: parquet::file::properties::WriterPropertiesBuilder) -> PathBuf {
    let array: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    let schema = Arc::new(Schema::new(vec![Field::new("conversations", array.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![array]).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path.to_path_buf()
}

/// The error of decoding all of a table with a budget of ten megabytes.
fn within_ten_megabytes(path: &PathBuf) -> String {
    let data = open(path).unwrap();
    let table = &data.windows.files[0];
    let limits = basic_models::outside::FileLimits { bytes: 10 << 20, time: std::time::Duration::from_secs(60) };
    let room = Arc::new(super::room::Room::new(10 << 20));
    let budget = basic_models::outside::Budget::within(path, limits);
    let budget = Arc::new(super::room::Purse::new(budget, room));
    let file = Arc::new(super::pages::Bounded::new(File::open(path).unwrap(), budget).unwrap());
    let group = super::pages::Group { file, metadata: table.metadata.metadata(), group: 0 };
    let fields = super::compact::viewed(table.metadata.schema().fields());
    let mask = parquet::arrow::ProjectionMask::all();
    let levels = parquet::arrow::parquet_to_arrow_field_levels(table.metadata.parquet_schema(), mask, Some(&fields));
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new_with_row_groups(
        &levels.unwrap(),
        &group,
        1,
        None,
    )
    .unwrap();
    reader.collect::<Result<Vec<_>, _>>().unwrap_err().to_string()
}

#[test]
fn a_page_that_becomes_large_is_refused_and_a_dictionary_is_not_repeated() {
    use parquet::basic::{Compression, Encoding, ZstdLevel};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let plain = || WriterProperties::builder().set_dictionary_enabled(false);
    let long = "a".repeat(20 << 20);
    for codec in [Compression::ZSTD(ZstdLevel::default()), Compression::GZIP(Default::default()), Compression::SNAPPY] {
        let data = open(&packed(&path, &[&long], plain().set_compression(codec))).unwrap();
        let error = data.sample(0).unwrap_err();
        assert!(error.is_sample() && error.to_string().contains("16 MiB of text"), "{error}");
    }
    // The budget is counted while the pages are decoded: the same file exceeds ten megabytes.
    packed(&path, &[&long], plain().set_compression(Compression::ZSTD(ZstdLevel::default())));
    assert!(within_ten_megabytes(&path).contains("--file-bytes"));

    // One value of a megabyte in 300 rows, which would take 300 MB if it were repeated.
    let value = "b".repeat(1 << 20);
    let many = vec![value.as_str(); 300];
    let data =
        open(&packed(&path, &many, WriterProperties::builder().set_dictionary_page_size_limit(4 << 20))).unwrap();
    let table = &data.windows.files[0];
    let (leaves, _) = table.leaves(0, false);
    let key = super::cache::Key { file: 0, group: 0, window: 0, outline: false };
    let room = Arc::new(super::room::Room::new(1 << 30));
    let batches = table.decode(&room, &key, table.window_rows(0, &leaves), &leaves).unwrap();
    let bytes: usize = batches.iter().map(|batch| batch.get_array_memory_size()).sum();
    assert!(bytes < 16 << 20, "{bytes}");

    // Texts with a shared prefix: each is a megabyte long, and the file is little more than one megabyte.
    let texts: Vec<String> = (0..50).map(|at| format!("{value}{at}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    packed(&path, &texts, plain().set_encoding(Encoding::DELTA_BYTE_ARRAY));
    assert!(std::fs::metadata(&path).unwrap().len() < 5 << 20);
    assert!(within_ten_megabytes(&path).contains("--file-bytes"));
}

#[test]
fn media_under_any_of_its_names_break_a_row_and_an_empty_cell_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let turns = r#"[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]"#;
    let rows = || text(&[Some(turns), Some(turns), Some(turns)]);
    let paths = text(&[Some("x.mp4"), None, Some(" ")]);
    let beside = structure(&[("bytes", bytes(&[None, None, None])), ("path", paths.clone())]);
    let listed = lists(text(&[Some("x.mp4"), Some("")]), &[1, 0, 1]);
    for (name, column) in [
        ("video_path", paths.clone()),
        ("audio_url", paths.clone()),
        ("image_path", paths),
        ("video", Arc::new(beside) as ArrayRef),
        ("videos", listed),
    ] {
        let path = written(&dir.path().join("a.parquet"), &[(name, column), ("conversations", rows())], 9);
        let data = open(&path).unwrap();
        let error = data.sample(0).unwrap_err();
        assert!(error.is_sample(), "{name}: {error}");
        for row in 1..3 {
            assert_eq!(data.sample(row).unwrap().messages[0].content, "q", "{name} {row}");
        }
    }
}

#[test]
fn a_caption_loses_its_mark_and_json_counts_what_it_becomes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let columns = [("image", bytes(&[Some(b"x")])), ("caption", text(&[Some("\u{feff}a cat")]))];
    assert_eq!(open(&written(&path, &columns, 9)).unwrap().sample(0).unwrap().messages[1].content, "a cat");
    let lists = format!("[{}0]", "[0],".repeat(1 << 20));
    let data = open(&written(&path, &[("conversations", text(&[Some(&lists)]))], 9)).unwrap();
    let error = data.sample(0).unwrap_err();
    assert!(error.is_sample() && error.to_string().contains("--file-bytes"), "{error}");
}

#[test]
fn windows_that_are_large_are_not_kept_beside_each_other() {
    use parquet::basic::{Compression, ZstdLevel};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let zstd = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()));
    let row = "a".repeat(100 << 20);
    let zstd = zstd.set_dictionary_enabled(false).set_max_row_group_row_count(Some(1));
    let data = open(&packed(&path, &[&row, &row, &row, &row, &row], zstd)).unwrap();
    for row in 0..5 {
        assert!(data.sample(row).unwrap_err().to_string().contains("16 MiB of text"));
        assert!(data.windows.cache.kept() <= 256 << 20, "{}", data.windows.cache.kept());
    }
    assert!(data.windows.cache.kept() > 0);
}
