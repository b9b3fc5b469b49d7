//! A serializer that writes what the codec writes, and notes which bytes are which part of a value.

use std::fmt::{self, Display};

use praas_runtime::codec;
use serde::ser::{self, Serialize};

use super::Field;

/// The parts of a value: each number, text, length, tag and variant with its path.
pub(super) fn trace<T: Serialize>(value: &T) -> Vec<Field> {
    let mut tracer = Tracer {
        path: String::new(),
        fields: Vec::new(),
    };
    value
        .serialize(&mut tracer)
        .expect("a golden value can be serialized");
    tracer.fields
}

struct Tracer {
    path: String,
    fields: Vec<Field>,
}

#[derive(Debug)]
struct TraceError(String);

impl Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TraceError {}

impl ser::Error for TraceError {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl Tracer {
    /// Notes one part; `what` comes behind the path.
    fn note<T: Serialize + ?Sized>(&mut self, what: &str, part: &T) -> Result<(), TraceError> {
        let bytes = codec::encode(part).map_err(|error| TraceError(error.to_string()))?;
        let name = format!("{}{what}", self.path);
        let name = name.trim().trim_start_matches('.').to_owned();
        self.fields.push(Field { name, bytes });
        Ok(())
    }

    /// Goes one step down the path.
    fn below<T: Serialize + ?Sized>(&mut self, step: &str, part: &T) -> Result<(), TraceError> {
        let before = self.path.len();
        self.path.push_str(if before == 0 {
            step.trim_start_matches('.')
        } else {
            step
        });
        part.serialize(&mut *self)?;
        self.path.truncate(before);
        Ok(())
    }

    fn parts(&mut self, indexed: bool) -> Parts<'_> {
        Parts {
            tracer: self,
            at: 0,
            indexed,
        }
    }

    fn variant(&mut self, of: &str, index: u32, name: &str) -> Result<(), TraceError> {
        self.note(&format!(" {of}::{name}"), &index)
    }
}

/// The parts of a sequence, a tuple or a struct.
struct Parts<'a> {
    tracer: &'a mut Tracer,
    at: usize,
    indexed: bool,
}

impl Parts<'_> {
    fn next<T: Serialize + ?Sized>(&mut self, part: &T) -> Result<(), TraceError> {
        let step = match self.indexed {
            true => format!("[{}]", self.at),
            false => format!(".{}", self.at),
        };
        self.at += 1;
        self.tracer.below(&step, part)
    }
}

macro_rules! leaves {
    ($($method:ident($type:ty))*) => {
        $(fn $method(self, value: $type) -> Result<(), TraceError> {
            self.note("", &value)
        })*
    };
}

impl<'a> ser::Serializer for &'a mut Tracer {
    type Ok = ();
    type Error = TraceError;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    leaves! {
        serialize_bool(bool) serialize_i8(i8) serialize_i16(i16) serialize_i32(i32)
        serialize_i64(i64) serialize_i128(i128) serialize_u8(u8) serialize_u16(u16)
        serialize_u32(u32) serialize_u64(u64) serialize_u128(u128) serialize_f32(f32)
        serialize_f64(f64) serialize_char(char) serialize_str(&str)
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), TraceError> {
        self.note("", value)
    }

    fn serialize_none(self) -> Result<(), TraceError> {
        self.note("?", &0_u8)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), TraceError> {
        self.note("?", &1_u8)?;
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), TraceError> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), TraceError> {
        Ok(())
    }

    fn serialize_unit_variant(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
    ) -> Result<(), TraceError> {
        self.variant(of, index, name)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), TraceError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        value: &T,
    ) -> Result<(), TraceError> {
        self.variant(of, index, name)?;
        value.serialize(self)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Parts<'a>, TraceError> {
        let len = len.ok_or_else(|| TraceError("a sequence without a length".into()))?;
        self.note(".len", &(len as u64))?;
        Ok(self.parts(true))
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, TraceError> {
        Ok(self.parts(false))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, TraceError> {
        Ok(self.parts(false))
    }

    fn serialize_tuple_variant(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, TraceError> {
        self.variant(of, index, name)?;
        Ok(self.parts(false))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Parts<'a>, TraceError> {
        self.serialize_seq(len)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, TraceError> {
        Ok(self.parts(false))
    }

    fn serialize_struct_variant(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, TraceError> {
        self.variant(of, index, name)?;
        Ok(self.parts(false))
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! sequences {
    ($($trait:ident::$method:ident)*) => {
        $(impl ser::$trait for Parts<'_> {
            type Ok = ();
            type Error = TraceError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TraceError> {
                self.next(value)
            }

            fn end(self) -> Result<(), TraceError> {
                Ok(())
            }
        })*
    };
}

sequences! {
    SerializeSeq::serialize_element
    SerializeTuple::serialize_element
    SerializeTupleStruct::serialize_field
    SerializeTupleVariant::serialize_field
}

macro_rules! structs {
    ($($trait:ident)*) => {
        $(impl ser::$trait for Parts<'_> {
            type Ok = ();
            type Error = TraceError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), TraceError> {
                self.tracer.below(&format!(".{key}"), value)
            }

            fn end(self) -> Result<(), TraceError> {
                Ok(())
            }
        })*
    };
}

structs! { SerializeStruct SerializeStructVariant }

impl ser::SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = TraceError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), TraceError> {
        let at = self.at;
        self.tracer.below(&format!("[{at}].key"), key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TraceError> {
        let at = self.at;
        self.at += 1;
        self.tracer.below(&format!("[{at}].value"), value)
    }

    fn end(self) -> Result<(), TraceError> {
        Ok(())
    }
}
