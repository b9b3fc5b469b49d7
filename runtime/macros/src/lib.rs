//! The attribute macro of praas-runtime.
//!
//! Of `fn f` it makes, beside the function itself, a type `f` that implements `GuestFunction`:
//! types and functions have names of their own, so `module!("m", [f])` finds it.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::{
    Error, FnArg, GenericArgument, GenericParam, ItemFn, LitInt, LitStr, PathArguments, Result,
    ReturnType, Type, parse_macro_input,
};

/// See `praas_runtime::function`.
#[proc_macro_attribute]
pub fn function(options: TokenStream, item: TokenStream) -> TokenStream {
    let mut wanted = Options::default();
    let parser = syn::meta::parser(|meta| wanted.read(&meta));
    parse_macro_input!(options with parser);
    let item = parse_macro_input!(item as ItemFn);
    match expand(&wanted, &item) {
        Ok(tokens) => quote!(#item #tokens).into(),
        Err(error) => {
            let error = error.to_compile_error();
            quote!(#item #error).into()
        }
    }
}

#[derive(Default)]
struct Options {
    name: Option<LitStr>,
    flags: u64,
    concurrency: u32,
    time_ms: u32,
    memory_bytes: u64,
}

impl Options {
    fn read(&mut self, meta: &syn::meta::ParseNestedMeta<'_>) -> Result<()> {
        // As in praas_runtime::abi: FLAG_SHORT, FLAG_LONG, FLAG_IDEMPOTENT.
        let flag = match () {
            () if meta.path.is_ident("short") => 1,
            () if meta.path.is_ident("long") => 2,
            () if meta.path.is_ident("idempotent") => 4,
            () if meta.path.is_ident("name") => {
                let name: LitStr = meta.value()?.parse()?;
                if !(1..=255).contains(&name.value().len()) {
                    return Err(Error::new(name.span(), "a name has 1 to 255 bytes"));
                }
                self.name = Some(name);
                return Ok(());
            }
            () if meta.path.is_ident("concurrency") => {
                self.concurrency = limit(meta)?;
                return Ok(());
            }
            () if meta.path.is_ident("time_ms") => {
                self.time_ms = limit(meta)?;
                return Ok(());
            }
            () if meta.path.is_ident("memory_bytes") => {
                self.memory_bytes = limit(meta)?;
                return Ok(());
            }
            () => {
                return Err(meta.error(
                    "expected name = \"...\", short, long, idempotent, concurrency = ..., \
                     time_ms = ... or memory_bytes = ...",
                ));
            }
        };
        self.flags |= flag;
        match self.flags & 3 {
            3 => Err(meta.error("a function is short or long, not both")),
            _ => Ok(()),
        }
    }
}

/// A limit: a whole number above zero.
fn limit<N: std::str::FromStr + Default + PartialEq>(
    meta: &syn::meta::ParseNestedMeta<'_>,
) -> Result<N>
where
    N::Err: std::fmt::Display,
{
    let number: LitInt = meta.value()?.parse()?;
    let value = number.base10_parse::<N>()?;
    match value == N::default() {
        true => Err(Error::new(
            number.span(),
            "a limit of zero is none: leave it out",
        )),
        false => Ok(value),
    }
}

fn expand(options: &Options, item: &ItemFn) -> Result<Tokens> {
    let signature = &item.sig;
    let mut generics = signature.generics.params.iter();
    let generic = generics.any(|generic| !matches!(generic, GenericParam::Lifetime(_)));
    if signature.asyncness.is_some() || generic {
        let text = "a cloud process's function is neither async nor generic";
        return Err(Error::new_spanned(signature, text));
    }
    let (ident, visibility) = (&signature.ident, &item.vis);
    let name = options
        .name
        .clone()
        .unwrap_or_else(|| LitStr::new(&ident.to_string(), ident.span()));
    let (flags, docs) = (
        options.flags,
        format!("`{ident}` as a function of a cloud process."),
    );
    let Options {
        concurrency,
        time_ms,
        memory_bytes,
        ..
    } = *options;
    let (prepare, arguments) = arguments(item)?;
    let call = quote!(#ident(#(#arguments),*));
    let finish = finish(&signature.output, &call);
    Ok(quote! {
        #[doc = #docs]
        #[allow(non_camel_case_types)]
        #visibility struct #ident {}

        impl ::praas_runtime::abi::GuestFunction for #ident {
            const NAME: &'static str = #name;
            const FLAGS: u64 = #flags;
            const CONCURRENCY: u32 = #concurrency;
            const TIME_MS: u32 = #time_ms;
            const MEMORY_BYTES: u64 = #memory_bytes;

            fn run(
                __context: &::praas_runtime::context::Context<'_>,
                __input: &[u8],
            ) -> ::core::result::Result<(), ::praas_runtime::context::FunctionError> {
                #prepare
                #finish
            }
        }
    })
}

/// What reads the input, and what the function is called with.
fn arguments(item: &ItemFn) -> Result<(Tokens, Vec<Tokens>)> {
    let (mut prepare, mut arguments) = (Tokens::new(), Vec::new());
    let inputs = &item.sig.inputs;
    let mut context_possible = true;
    for input in inputs {
        let FnArg::Typed(input) = input else {
            return Err(Error::new_spanned(
                input,
                "a cloud process's function is no method",
            ));
        };
        let ty = &*input.ty;
        if context_possible && is_context(ty) {
            context_possible = false;
            arguments.push(quote!(__context));
            continue;
        }
        if inputs.len() > arguments.len() + 1 {
            let text = "expected (context: &Context, input: Type), both optional; several values \
                        make one input as a tuple or a struct";
            return Err(Error::new_spanned(ty, text));
        }
        context_possible = false;
        if is_bytes(ty) {
            arguments.push(quote!(__input));
        } else {
            prepare = quote!(let __value: #ty = __context.input_value(__input)?;);
            arguments.push(quote!(__value));
        }
    }
    Ok((prepare, arguments))
}

/// Calls the function and writes what it returns.
fn finish(output: &ReturnType, call: &Tokens) -> Tokens {
    let ReturnType::Type(_, ty) = output else {
        return quote!(#call; ::core::result::Result::Ok(()));
    };
    let (value, ok) = match result_ok(ty) {
        Some(ok) => (quote!(#call?), ok),
        None => (quote!(#call), &**ty),
    };
    match ok {
        Type::Tuple(tuple) if tuple.elems.is_empty() => {
            quote!(#value; ::core::result::Result::Ok(()))
        }
        ok if last_is(ok, "Output") => {
            quote!(let _: ::praas_runtime::abi::Output<'_> = #value; ::core::result::Result::Ok(()))
        }
        ok if last_is(ok, "View") || is_vec_u8(ok) || is_bytes(ok) => {
            quote!(__context.output_bytes(::core::convert::AsRef::<[u8]>::as_ref(&#value)))
        }
        _ => quote!(__context.output_value(&#value)),
    }
}

fn last_is(ty: &Type, name: &str) -> bool {
    let Type::Path(path) = ty else { return false };
    path.path
        .segments
        .last()
        .is_some_and(|segment| segment.ident == name)
}

fn is_context(ty: &Type) -> bool {
    matches!(ty, Type::Reference(reference) if last_is(&reference.elem, "Context"))
}

fn is_bytes(ty: &Type) -> bool {
    let Type::Reference(reference) = ty else {
        return false;
    };
    matches!(&*reference.elem, Type::Slice(slice) if last_is(&slice.elem, "u8"))
}

/// The first argument of a generic type of this name.
fn argument_of<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let segment = path
        .path
        .segments
        .last()
        .filter(|segment| segment.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &segment.arguments else {
        return None;
    };
    match arguments.args.first()? {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    }
}

fn result_ok(ty: &Type) -> Option<&Type> {
    argument_of(ty, "Result")
}

fn is_vec_u8(ty: &Type) -> bool {
    argument_of(ty, "Vec").is_some_and(|of| last_is(of, "u8"))
}
