/*
 * Functions of cloud processes in C and C++: what a module and the process that loads it know of
 * each other. A module is a shared library with one symbol, praas_module_v1, and is linked to
 * nothing of praas:
 *
 *     #include "praas.h"
 *
 *     PRAAS_FUNCTION(greet, PRAAS_FLAG_IDEMPOTENT)
 *     {
 *         return praas_output(call, host, "hello", 5);
 *     }
 *
 *     PRAAS_MODULE("greeting", PRAAS_USE(greet));
 *
 *     cc -std=c11 -O2 -fPIC -shared -I bindings/c/include -o greeting.so greeting.c
 *     praas app create demo --module ./greeting.so
 *
 * Inside a function, `call` is the running invocation, `host` the table of what it may ask for, and
 * `input` its input. `call` is good until the function returns, and on its thread only; so is
 * `input`. What is given to the host is copied before its call returns. What the host lends (a
 * praas_raw_view) is never written while it is lent, and is given back once, by view_release, from
 * any thread, also after the function has returned.
 *
 * Tables begin with their size and grow only at their end: before you use what a newer version has
 * added, ask PRAAS_HOST_HAS(host, what). Nothing may be thrown, and no longjmp go, through a
 * function of this header: in C++, catch everything in the function.
 *
 * Timeouts are in microseconds; negative is the invocation's own deadline, or none.
 *
 * Printed from runtime/src/abi/table.rs and bindings/c/header/. Do not edit it: change those, and
 * run PRAAS_BLESS=1 cargo test -p praas-c. docs/abi.md says the same in tables.
 */
#ifndef PRAAS_H
#define PRAAS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
#define PRAAS_ASSERT_LAYOUT(condition, text) static_assert(condition, text)
#define PRAAS_C extern "C"
#else
#define PRAAS_ASSERT_LAYOUT(condition, text) _Static_assert(condition, text)
#define PRAAS_C extern
#endif

/* Where a field is, and how large a type: what the host has been compiled with. */
#define PRAAS_PLACE(type, field, offset)                                                           \
    PRAAS_ASSERT_LAYOUT(offsetof(type, field) == (offset), #type "." #field)
#define PRAAS_SIZE(type, size) PRAAS_ASSERT_LAYOUT(sizeof(type) == (size), #type)

#if defined(__GNUC__) || defined(__clang__)
#define PRAAS_EXPORT __attribute__((visibility("default")))
#define PRAAS_UNUSED __attribute__((unused))
#else
#define PRAAS_EXPORT
#define PRAAS_UNUSED
#endif

PRAAS_ASSERT_LAYOUT(sizeof(void *) == 8 && sizeof(size_t) == 8, "praas is for 64-bit machines");

#ifdef __cplusplus
extern "C" {
#endif
