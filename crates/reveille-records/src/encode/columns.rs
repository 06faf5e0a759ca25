//! Parquet: one row group a file, columns by dictionary where that is shorter, compressed by zstd.

use std::fmt;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use reveille_core::model::Timestamp;

use super::{Encode, EncodeError};
use crate::row::{QueryRow, RequestRow};

const QUERIES: &str = "message query {
    required int64 time (TIMESTAMP(MILLIS, true));
    required binary name (STRING);
    required binary type (STRING);
    optional binary client (STRING);
    required binary source (STRING);
    optional int32 rcode;
}";

const REQUESTS: &str = "message request {
    required int64 time (TIMESTAMP(MILLIS, true));
    required binary user (STRING);
    optional binary group (STRING);
    required binary service (STRING);
    optional binary runtime (STRING);
    required double seconds;
    optional double cpu_seconds;
    optional int64 memory_bytes;
    optional int64 io_bytes;
    required group tags (LIST) { repeated group list { required binary element (STRING); } }
}";

/// The form.
pub(super) struct Parquet;

impl Encode for Parquet {
    fn queries(&self, rows: &[QueryRow]) -> Result<Vec<u8>, EncodeError> {
        let client = |row: &QueryRow| row.client.map(|client| text(client.to_string()));
        let columns = |file: &mut Columns<'_, '_>| {
            file.required::<Int64Type, _>(rows, |row| milliseconds(row.at))?;
            file.required::<ByteArrayType, _>(rows, |row| text(&*row.name))?;
            file.required::<ByteArrayType, _>(rows, |row| text(&*row.qtype))?;
            file.optional::<ByteArrayType, _>(rows, client)?;
            file.required::<ByteArrayType, _>(rows, |row| text(row.source.word()))?;
            file.optional::<Int32Type, _>(rows, |row| row.rcode.map(i32::from))
        };
        write(QUERIES, columns).map_err(|error| unwritten(rows.len(), &error))
    }

    fn requests(&self, rows: &[RequestRow]) -> Result<Vec<u8>, EncodeError> {
        let columns = |file: &mut Columns<'_, '_>| {
            file.required::<Int64Type, _>(rows, |row| milliseconds(row.at))?;
            file.required::<ByteArrayType, _>(rows, |row| text(&*row.user))?;
            file.optional::<ByteArrayType, _>(rows, |row| row.group.as_deref().map(text))?;
            file.required::<ByteArrayType, _>(rows, |row| text(&*row.service))?;
            file.optional::<ByteArrayType, _>(rows, |row| row.runtime.as_deref().map(text))?;
            file.required::<DoubleType, _>(rows, |row| row.seconds)?;
            file.optional::<DoubleType, _>(rows, |row| row.cpu_seconds)?;
            file.optional::<Int64Type, _>(rows, |row| row.memory_bytes.map(whole))?;
            file.optional::<Int64Type, _>(rows, |row| row.io_bytes.map(whole))?;
            file.lists(rows, |row| row.tags.iter().map(|tag| text(&**tag)).collect())
        };
        write(REQUESTS, columns).map_err(|error| unwritten(rows.len(), &error))
    }
}

fn write(
    schema: &str,
    columns: impl FnOnce(&mut Columns<'_, '_>) -> Result<(), ParquetError>,
) -> Result<Vec<u8>, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by(concat!("reveille ", env!("CARGO_PKG_VERSION")).to_owned());
    let schema = Arc::new(parse_message_type(schema)?);
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?;
    let mut group = file.next_row_group()?;
    columns(&mut Columns(&mut group))?;
    group.close()?;
    file.into_inner()
}

/// The columns of a file, in the order of its schema.
struct Columns<'g, 'f>(&'g mut SerializedRowGroupWriter<'f, Vec<u8>>);

impl Columns<'_, '_> {
    /// A column in which each row has a value.
    fn required<T: DataType, R>(
        &mut self,
        rows: &[R],
        value: impl Fn(&R) -> T::T,
    ) -> Result<(), ParquetError> {
        let values: Vec<T::T> = rows.iter().map(value).collect();
        self.column::<T>(&values, None, None)
    }

    /// One in which a row has a value or none.
    fn optional<T: DataType, R>(
        &mut self,
        rows: &[R],
        value: impl Fn(&R) -> Option<T::T>,
    ) -> Result<(), ParquetError> {
        let all: Vec<Option<T::T>> = rows.iter().map(value).collect();
        let defined: Vec<i16> = all.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<T::T> = all.into_iter().flatten().collect();
        self.column::<T>(&values, Some(&defined), None)
    }

    /// One in which a row has a list of texts.
    fn lists<R>(&mut self, rows: &[R], value: impl Fn(&R) -> Vec<ByteArray>) -> Result<(), ParquetError> {
        let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        for list in rows.iter().map(value) {
            // An empty list is one entry that is not defined; each further element repeats the list.
            let entries = list.len().max(1);
            defined.extend(std::iter::repeat_n(i16::from(!list.is_empty()), entries));
            repeated.extend((0..entries).map(|place| i16::from(place > 0)));
            values.extend(list);
        }
        self.column::<ByteArrayType>(&values, Some(&defined), Some(&repeated))
    }

    fn column<T: DataType>(
        &mut self,
        values: &[T::T],
        defined: Option<&[i16]>,
        repeated: Option<&[i16]>,
    ) -> Result<(), ParquetError> {
        let next = self.0.next_column()?;
        let mut column =
            next.ok_or_else(|| ParquetError::General("the schema has fewer columns".to_owned()))?;
        column.typed::<T>().write_batch(values, defined, repeated)?;
        column.close()
    }
}

fn unwritten(rows: usize, why: &dyn fmt::Display) -> EncodeError {
    EncodeError { rows, why: why.to_string() }
}

fn text(text: impl AsRef<str>) -> ByteArray {
    ByteArray::from(text.as_ref())
}

fn milliseconds(at: Timestamp) -> i64 {
    whole(at.as_ms())
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
