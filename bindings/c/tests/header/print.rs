//! Prints the ABI's items as C: types, tables with the place of each field, numbers.
//!
//! ```text
//!   table.rs --syn--> items --> C types, sizes and places by C's rules, comments
//! ```
//!
//! Names follow one rule: `HostTable` is `praas_host_table`, `FLAG_SHORT` is `PRAAS_FLAG_SHORT`,
//! a variant of `Status` is `PRAAS_STATUS_…`. What is documented beside an item in Rust is its
//! comment here, so a field that is added needs nothing else.

use std::collections::BTreeMap;
use std::fmt::Write;

use quote::ToTokens;
use syn::{Attribute, Expr, Fields, Item, ItemConst, ItemEnum, ItemStruct, ItemType, Lit, Type};

/// Columns of the header.
const COLUMNS: usize = 100;

/// A type in C: what stands before and after the name, and how large it is.
#[derive(Debug, Clone)]
struct CType {
    before: String,
    after: String,
    size: usize,
    align: usize,
}

impl CType {
    fn plain(name: &str, size: usize) -> Self {
        Self {
            before: format!("{name} "),
            after: String::new(),
            size,
            align: size,
        }
    }

    fn declare(&self, name: &str) -> String {
        format!("{}{name}{}", self.before, self.after)
    }
}

/// What was printed so far, and what later items refer to.
#[derive(Default)]
pub struct Printer {
    out: String,
    types: BTreeMap<String, CType>,
    aliases: BTreeMap<String, Type>,
    /// Fields of the tables, with the size of each, for initialisers.
    fields: BTreeMap<String, Vec<(String, CType)>>,
}

/// `HostTable` as `praas_host_table`.
fn snake(name: &str) -> String {
    let mut out = String::from("praas");
    for letter in name.chars() {
        if letter.is_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

/// `FunctionError` as `FUNCTION_ERROR`.
fn shout(name: &str) -> String {
    snake(name)["praas_".len()..].to_uppercase()
}

/// The paragraphs of an item's documentation, with names as C has them.
fn docs(attributes: &[Attribute]) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for attribute in attributes {
        let syn::Meta::NameValue(pair) = &attribute.meta else {
            continue;
        };
        let (true, Expr::Lit(text)) = (pair.path.is_ident("doc"), &pair.value) else {
            continue;
        };
        let Lit::Str(text) = &text.lit else { continue };
        let line = text.value();
        let line = line.trim();
        if line == "# Safety" {
            break;
        }
        match (line.is_empty(), paragraphs.last_mut()) {
            (true, _) => paragraphs.push(String::new()),
            (false, Some(last)) => {
                if !last.is_empty() {
                    last.push(' ');
                }
                last.push_str(line);
            }
            (false, None) => {}
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    for paragraph in &mut paragraphs {
        *paragraph = links(paragraph);
    }
    paragraphs
}

/// Rust's links, and the few names that C has others for, as a C reader knows them.
fn links(text: &str) -> String {
    let mut out = String::new();
    for (number, part) in text.split("[`").enumerate() {
        let Some((name, rest)) = part.split_once("`]").filter(|_| number > 0) else {
            out.push_str(part);
            continue;
        };
        let name = name.rsplit("::").next().unwrap_or(name);
        if name == "Status" {
            out.push_str("PRAAS_STATUS_*");
            out.push_str(rest);
            continue;
        }
        out.push_str(&match name.chars().all(|c| c.is_uppercase() || c == '_') {
            true => format!("PRAAS_{name}"),
            false => snake(name),
        });
        // A link may be followed by where it leads.
        let skip = rest.strip_prefix('(').and_then(|rest| rest.find(')'));
        out.push_str(skip.map_or(rest, |end| &rest[end + 2..]));
    }
    out.replace("`u64::MAX`", "UINT64_MAX")
        .replace("`i32`", "int32_t")
        .replace('`', "")
}

/// A comment, wrapped.
fn comment(paragraphs: &[String], indent: usize) -> String {
    let pad = " ".repeat(indent);
    let width = COLUMNS - indent - 3;
    let mut lines = Vec::new();
    for (number, paragraph) in paragraphs.iter().enumerate() {
        if number > 0 {
            lines.push(String::new());
        }
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.len() + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    match lines.as_slice() {
        [] => String::new(),
        [one] if one.len() + 3 <= width => format!("{pad}/* {one} */\n"),
        lines => {
            let body: String = lines
                .iter()
                .map(|line| format!("{pad} * {line}").trim_end().to_owned() + "\n")
                .collect();
            format!("{pad}/*\n{body}{pad} */\n")
        }
    }
}

impl Printer {
    /// Prints all public items of a file, in their order.
    pub fn file(&mut self, source: &str) {
        let file = syn::parse_file(source).expect("the ABI's source is Rust");
        for item in &file.items {
            self.item(item);
        }
    }

    /// The constants of the module `name` in a file, as numbers.
    fn item(&mut self, item: &Item) {
        match item {
            Item::Const(item) if public(&item.vis) => self.constant(item),
            Item::Type(item) => self.alias(item),
            Item::Struct(item) if public(&item.vis) => self.structure(item),
            Item::Mod(item) if public(&item.vis) => {
                let (_, items) = item.content.as_ref().expect("a module with its items");
                self.out.push_str(&comment(&docs(&item.attrs), 0));
                self.out.push_str("enum {\n");
                for item in items {
                    let Item::Const(item) = item else { continue };
                    let text = comment(&docs(&item.attrs), 4);
                    let value = item.expr.to_token_stream();
                    writeln!(self.out, "{text}    PRAAS_{} = {value},", item.ident).expect("text");
                }
                self.enum_end();
            }
            _ => {}
        }
    }

    /// C++ before 11 and strict C90 dislike a comma at the end; readers do not miss it.
    fn enum_end(&mut self) {
        if self.out.ends_with(",\n") {
            self.out.truncate(self.out.len() - 2);
            self.out.push('\n');
        }
        self.out.push_str("};\n\n");
    }

    fn constant(&mut self, item: &ItemConst) {
        let ty = item.ty.to_token_stream().to_string();
        let bits = match ty.as_str() {
            "u64" => 64,
            "u32" => 32,
            // Texts are for loaders.
            _ => return,
        };
        let value = item.expr.to_token_stream().to_string().replace(' ', "");
        let value = match &*item.expr {
            Expr::Lit(_) => format!("UINT{bits}_C({})", value.replace('_', "")),
            _ if value.ends_with("::MAX") => format!("UINT{bits}_MAX"),
            _ => format!("((uint{bits}_t)({value}))"),
        };
        self.out.push_str(&comment(&docs(&item.attrs), 0));
        writeln!(self.out, "#define PRAAS_{} {value}\n", item.ident).expect("text");
    }

    fn alias(&mut self, item: &ItemType) {
        let name = item.ident.to_string();
        if !public(&item.vis) {
            self.aliases.insert(name, (*item.ty).clone());
            return;
        }
        let ty = self.ctype(&item.ty);
        let cname = snake(&name);
        self.out.push_str(&comment(&docs(&item.attrs), 0));
        writeln!(
            self.out,
            "typedef {};\n",
            wrap(&ty.declare(&cname), 0, "typedef ".len())
        )
        .expect("text");
        let plain = CType::plain(&cname, ty.size);
        self.types.insert(name, plain);
    }

    /// A variant of `Status` is a number, too.
    pub fn status(&mut self, source: &str) {
        let file = syn::parse_file(source).expect("the statuses' source is Rust");
        let found = file.items.iter().find_map(|item| match item {
            Item::Enum(item) if item.ident == "Status" => Some(item),
            _ => None,
        });
        let ItemEnum {
            attrs, variants, ..
        } = found.expect("an enum Status");
        self.out.push_str(&comment(&docs(attrs), 0));
        self.out.push_str("enum {\n");
        for variant in variants {
            let text = comment(&docs(&variant.attrs), 4);
            let name = shout(&variant.ident.to_string());
            let (_, value) = variant.discriminant.as_ref().expect("a number");
            let value = value.to_token_stream();
            writeln!(self.out, "{text}    PRAAS_STATUS_{name} = {value},").expect("text");
        }
        self.enum_end();
    }

    fn structure(&mut self, item: &ItemStruct) {
        let (name, cname) = (item.ident.to_string(), snake(&item.ident.to_string()));
        let text = comment(&docs(&item.attrs), 0);
        let Fields::Named(fields) = &item.fields else {
            panic!("{name} has no named fields");
        };
        if fields.named.iter().all(|field| !public(&field.vis)) {
            // Opaque.
            writeln!(self.out, "{text}typedef struct {cname} {cname};\n").expect("text");
            self.types.insert(name, CType::plain(&cname, 0));
            return;
        }
        // Entries of functions name the host's table before it is there.
        let forward = self.types.contains_key(&name);
        self.out.push_str(&text);
        let head = if forward { "" } else { "typedef " };
        writeln!(self.out, "{head}struct {cname} {{").expect("text");
        let (mut offset, mut align, mut asserts) = (0, 1, String::new());
        let mut known = Vec::new();
        for field in &fields.named {
            let ty = self.ctype(&field.ty);
            let field_name = field.ident.as_ref().expect("a name").to_string();
            offset = usize::next_multiple_of(offset, ty.align);
            let declared = wrap(&ty.declare(&field_name), 4, 4);
            let text = comment(&docs(&field.attrs), 4);
            writeln!(self.out, "{text}    {declared};").expect("text");
            writeln!(asserts, "PRAAS_PLACE({cname}, {field_name}, {offset});").expect("text");
            offset += ty.size;
            align = align.max(ty.align);
            known.push((field_name, ty));
        }
        let size = usize::next_multiple_of(offset, align);
        let tail = if forward { "" } else { &cname };
        let tail = format!("}} {tail}").trim_end().to_owned();
        writeln!(self.out, "{tail};\n").expect("text");
        writeln!(self.out, "PRAAS_SIZE({cname}, {size});").expect("text");
        writeln!(self.out, "{asserts}").expect("text");
        let ty = CType {
            align,
            ..CType::plain(&cname, size)
        };
        self.types.insert(name.clone(), ty);
        self.fields.insert(name, known);
    }

    /// A macro that initialises a table: the first fields by its arguments, what was added since
    /// by zeros.
    pub fn initialiser(&mut self, table: &str, suffix: &str, arguments: &str, values: &[&str]) {
        let cname = snake(table);
        let fields = &self.fields[table];
        let mut all = vec![format!("sizeof({cname})")];
        all.extend(values.iter().map(|value| (*value).to_owned()));
        for (name, ty) in &fields[all.len()..] {
            let members = self.fields.iter().find(|(known, _)| {
                self.types[*known].before == ty.before && !ty.before.contains('*')
            });
            all.push(match members {
                Some((_, members)) => format!("{{{}}}", vec!["0"; members.len()].join(", ")),
                None => format!("0 /* {name} */"),
            });
        }
        let macro_name = format!("PRAAS_{}{suffix}", shout(table));
        writeln!(
            self.out,
            "/* Initialises a {cname}; fields that are not named here are zero. */"
        )
        .expect("text");
        let body = all.join(", \\\n     ");
        writeln!(
            self.out,
            "#define {macro_name}({arguments}) \\\n    {{{body}}}\n"
        )
        .expect("text");
    }

    /// What was printed.
    pub fn finish(self) -> String {
        self.out
    }

    fn ctype(&mut self, ty: &Type) -> CType {
        match ty {
            Type::Path(path) => {
                let name = path.path.segments.last().expect("a name").ident.to_string();
                self.named(&name)
            }
            Type::Ptr(pointer) => {
                let target = match &*pointer.elem {
                    Type::Path(path) if path.path.segments.last().is_some_and(c_void) => {
                        CType::plain("void", 1)
                    }
                    other => self.ctype(other),
                };
                let constant = pointer.const_token.is_some();
                let before = target.before.trim_end();
                let before = match (constant, before.ends_with('*')) {
                    (true, true) => format!("{before}const *"),
                    (true, false) => format!("const {before} *"),
                    (false, true) => format!("{before}*"),
                    (false, false) => format!("{before} *"),
                };
                pointer_type(before, target.after)
            }
            Type::BareFn(function) => {
                let result = match &function.output {
                    syn::ReturnType::Default => CType::plain("void", 0),
                    syn::ReturnType::Type(_, ty) => self.ctype(ty),
                };
                let parameters: Vec<String> = function
                    .inputs
                    .iter()
                    .map(|input| {
                        let ty = self.ctype(&input.ty);
                        match &input.name {
                            Some((name, _)) => ty.declare(&name.to_string()),
                            None => ty.declare("").trim_end().to_owned(),
                        }
                    })
                    .collect();
                let parameters = match parameters.is_empty() {
                    true => "void".to_owned(),
                    false => parameters.join(", "),
                };
                pointer_type(format!("{}(*", result.before), format!(")({parameters})"))
            }
            other => panic!("no C type for {}", other.to_token_stream()),
        }
    }

    fn named(&mut self, name: &str) -> CType {
        match name {
            "u8" => CType::plain("uint8_t", 1),
            "u16" => CType::plain("uint16_t", 2),
            "u32" => CType::plain("uint32_t", 4),
            "u64" => CType::plain("uint64_t", 8),
            "i32" => CType::plain("int32_t", 4),
            "i64" => CType::plain("int64_t", 8),
            "f64" => CType::plain("double", 8),
            "usize" => CType::plain("size_t", 8),
            _ => {
                if let Some(alias) = self.aliases.get(name).cloned() {
                    return self.ctype(&alias);
                }
                if let Some(known) = self.types.get(name) {
                    return known.clone();
                }
                // Named before it is there: only a pointer to it can be meant.
                let cname = snake(name);
                writeln!(self.out, "typedef struct {cname} {cname};\n").expect("text");
                self.types.insert(name.into(), CType::plain(&cname, 0));
                self.types[name].clone()
            }
        }
    }
}

fn c_void(segment: &syn::PathSegment) -> bool {
    segment.ident == "c_void"
}

fn pointer_type(before: String, after: String) -> CType {
    CType {
        before,
        after,
        size: 8,
        align: 8,
    }
}

fn public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

/// A declaration after `taken` columns, its parameters on lines of their own below the first if it
/// is too long.
fn wrap(declaration: &str, indent: usize, taken: usize) -> String {
    if declaration.len() + taken < COLUMNS {
        return declaration.to_owned();
    }
    let Some(open) = declaration.rfind('(') else {
        return declaration.to_owned();
    };
    let pad = " ".repeat(indent + 4);
    let (head, parameters) = declaration.split_at(open + 1);
    let mut out = format!("{head}\n");
    let mut line = String::new();
    for parameter in parameters.split(", ") {
        if !line.is_empty() && pad.len() + line.len() + 2 + parameter.len() + 2 > COLUMNS {
            out.push_str(&format!("{pad}{line},\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(parameter);
    }
    out + &pad + &line
}
