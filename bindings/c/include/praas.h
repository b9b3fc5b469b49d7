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

/* How an invocation or a put ended, as it travels. */
enum {
    /* It was done; the payload is the output. */
    PRAAS_STATUS_OK = 0,
    /* The function returned an error; the payload is its message. */
    PRAAS_STATUS_FUNCTION_ERROR = 1,
    /* The process has no such function. */
    PRAAS_STATUS_UNKNOWN_FUNCTION = 2,
    /* The function panicked; the payload is the message. */
    PRAAS_STATUS_PANICKED = 3,
    /* The deadline passed first. */
    PRAAS_STATUS_DEADLINE_EXCEEDED = 4,
    /* The caller cancelled it. */
    PRAAS_STATUS_CANCELLED = 5,
    /* Every worker is blocked, or a limit of the process is reached. */
    PRAAS_STATUS_EXHAUSTED = 6,
    /* The result was there, and is forgotten. */
    PRAAS_STATUS_RESULT_EXPIRED = 7,
    /* Whether it ran is not known: the process that knew has died. */
    PRAAS_STATUS_OUTCOME_UNKNOWN = 8,
    /* The process is being swapped out or stopped: ask the directory again. */
    PRAAS_STATUS_QUIESCING = 9,
    /* Input or output is above a limit. */
    PRAAS_STATUS_TOO_LARGE = 10,
    /* The request is malformed. */
    PRAAS_STATUS_MALFORMED = 11,
    /* The mailbox is full. */
    PRAAS_STATUS_MAILBOX_FULL = 12,
    /* Whoever asked may not have it. */
    PRAAS_STATUS_FORBIDDEN = 13
};

/* The version of these tables. */
#define PRAAS_ABI_VERSION UINT32_C(1)

/* The function is short: it runs on the leader, which keeps the endpoint. */
#define PRAAS_FLAG_SHORT UINT64_C(1)

/* The function runs long: another worker takes over the endpoint at once. */
#define PRAAS_FLAG_LONG UINT64_C(2)

/* Running the function twice does no harm. */
#define PRAAS_FLAG_IDEMPOTENT UINT64_C(4)

/* Flag of message_get: look, do not take. */
#define PRAAS_MESSAGE_PEEK UINT32_C(1)

/* Version of state_commit that takes any object, and none. */
#define PRAAS_VERSION_ANY UINT64_MAX

/* Processes that one broadcast may name. */
#define PRAAS_BROADCAST_TO_MAX UINT32_C(65536)

/* Return codes besides those of PRAAS_STATUS_*. */
enum {
    /* Done. */
    PRAAS_OK = 0,
    /* No such object or message. */
    PRAAS_NOT_FOUND = 100,
    /* The object is at another version. */
    PRAAS_CONFLICT = 101,
    /* A limit of the process is reached. */
    PRAAS_LIMIT_REACHED = 102,
    /* An argument cannot be. */
    PRAAS_BAD_ARGUMENT = 103,
    /* The other process, or the storage, is not to be had. */
    PRAAS_UNAVAILABLE = 104,
    /* The object did not come back from storage as it was written. */
    PRAAS_CORRUPT = 105,
    /* Whoever asks may not have it. */
    PRAAS_FORBIDDEN = 106
};

/* Bytes somewhere; for optional arguments a null pointer is "none". */
typedef struct praas_bytes {
    /* The first byte; may be null if there are none. */
    const uint8_t *ptr;
    /* How many. */
    size_t len;
} praas_bytes;

PRAAS_SIZE(praas_bytes, 16);
PRAAS_PLACE(praas_bytes, ptr, 0);
PRAAS_PLACE(praas_bytes, len, 8);

/* A running invocation, as the host knows it. Opaque to modules. */
typedef struct praas_call_handle praas_call_handle;

/* Bytes that the host lends: released by view_release. */
typedef struct praas_raw_view {
    /* The bytes. */
    praas_bytes bytes;
    /* The version, of a state object. */
    uint64_t version;
    /* What to release; null if nothing. */
    void *handle;
} praas_raw_view;

PRAAS_SIZE(praas_raw_view, 32);
PRAAS_PLACE(praas_raw_view, bytes, 0);
PRAAS_PLACE(praas_raw_view, version, 16);
PRAAS_PLACE(praas_raw_view, handle, 24);

/* A message that the host lends. */
typedef struct praas_message_view {
    /* Who put it. */
    praas_raw_view source;
    /* What it carries. */
    praas_raw_view payload;
} praas_message_view;

PRAAS_SIZE(praas_message_view, 64);
PRAAS_PLACE(praas_message_view, source, 0);
PRAAS_PLACE(praas_message_view, payload, 32);

/* How one invocation of a batch ended. */
typedef struct praas_batch_outcome {
    /* The output, or the text of the error. */
    praas_raw_view view;
    /* The code: 0 if it was done. */
    int32_t code;
    /* Zero. */
    uint32_t reserved;
} praas_batch_outcome;

PRAAS_SIZE(praas_batch_outcome, 40);
PRAAS_PLACE(praas_batch_outcome, view, 0);
PRAAS_PLACE(praas_batch_outcome, code, 32);
PRAAS_PLACE(praas_batch_outcome, reserved, 36);

/*
 * The id of an invocation: its client's, and the client's number for it. A repetition has the same
 * id; so has a local invocation of one that is running.
 */
typedef struct praas_invocation_id {
    /* The client's id, its lower half. */
    uint64_t client_low;
    /* The client's id, its upper half. */
    uint64_t client_high;
    /* The client's number for the invocation, counted for each process. */
    uint64_t sequence;
} praas_invocation_id;

PRAAS_SIZE(praas_invocation_id, 24);
PRAAS_PLACE(praas_invocation_id, client_low, 0);
PRAAS_PLACE(praas_invocation_id, client_high, 8);
PRAAS_PLACE(praas_invocation_id, sequence, 16);

typedef struct praas_host_table praas_host_table;

/*
 * Runs a function: reads the input, sets the output or the error, returns a code: zero is done, one
 * an error, three a panic.
 */
typedef int32_t (*praas_entry_fn)(
    praas_call_handle *call, const praas_host_table *host, praas_bytes input);

/* A function of a module. */
typedef struct praas_function_table {
    /* Bytes of this table. */
    size_t size;
    /* PRAAS_FLAG_SHORT, PRAAS_FLAG_LONG, PRAAS_FLAG_IDEMPOTENT. */
    uint64_t flags;
    /* Its name, UTF-8, 1 to 255 bytes. */
    praas_bytes name;
    /* Its code. */
    praas_entry_fn entry;
    /* How many of its invocations may run at once; zero is as many as there are workers. */
    uint32_t concurrency;
    /* Milliseconds that one invocation may run; zero is as long as it takes. */
    uint32_t time_ms;
    /* Bytes that one invocation may hold through the host; zero is as many as there are. */
    uint64_t memory_bytes;
} praas_function_table;

PRAAS_SIZE(praas_function_table, 56);
PRAAS_PLACE(praas_function_table, size, 0);
PRAAS_PLACE(praas_function_table, flags, 8);
PRAAS_PLACE(praas_function_table, name, 16);
PRAAS_PLACE(praas_function_table, entry, 32);
PRAAS_PLACE(praas_function_table, concurrency, 40);
PRAAS_PLACE(praas_function_table, time_ms, 44);
PRAAS_PLACE(praas_function_table, memory_bytes, 48);

/* A module. */
typedef struct praas_module_table {
    /* Bytes of this table. */
    size_t size;
    /* PRAAS_ABI_VERSION. */
    uint32_t abi_version;
    /* Functions. */
    uint32_t function_count;
    /* Its name, UTF-8, 1 to 255 bytes. */
    praas_bytes name;
    /* Pointers to the functions' tables. */
    const praas_function_table *const *functions;
} praas_module_table;

PRAAS_SIZE(praas_module_table, 40);
PRAAS_PLACE(praas_module_table, size, 0);
PRAAS_PLACE(praas_module_table, abi_version, 8);
PRAAS_PLACE(praas_module_table, function_count, 12);
PRAAS_PLACE(praas_module_table, name, 16);
PRAAS_PLACE(praas_module_table, functions, 32);

/*
 * What a host offers to functions. It grows only at its end: a function looks at size before it
 * uses what is beyond the first version. Timeouts are in microseconds, negative is none; every
 * int32_t is a code, whose text error_text gives.
 */
struct praas_host_table {
    /* Bytes of this table. */
    size_t size;
    /* Memory for the output: len bytes, zeroed or not, at *out. A later call replaces it. */
    int32_t (*output_alloc)(praas_call_handle *call, size_t len, uint8_t **out);
    /* Sets the text of the error that the function returns. */
    void (*error_set)(praas_call_handle *call, praas_bytes text);
    /* The text of the last error that a function of this table returned for this call. */
    praas_bytes (*error_text)(praas_call_handle *call);
    /* 0 the application's name, 1 the process's, 2 the function's. */
    praas_bytes (*name)(praas_call_handle *call, uint32_t which);
    /* The process's incarnation. */
    uint64_t (*incarnation)(praas_call_handle *call);
    /* Whether the function should end early: 1 or 0. */
    int32_t (*cancelled)(praas_call_handle *call);
    /* Microseconds that the caller still waits; negative is for ever. */
    int64_t (*deadline_left_us)(praas_call_handle *call);
    /* Gives a view back. */
    void (*view_release)(praas_raw_view view);
    /* Writes a state object; its new version. */
    int32_t (*state_put)(
        praas_call_handle *call, praas_bytes key, praas_bytes value, uint64_t *version);
    /* Reads a state object without copying. */
    int32_t (*state_view)(praas_call_handle *call, praas_bytes key, praas_raw_view *view);
    /* Deletes a state object. */
    int32_t (*state_delete)(praas_call_handle *call, praas_bytes key);
    /*
     * Lists objects: for each its key's length (u32), key, length, version and milliseconds since
     * the epoch (u64 each), little-endian.
     */
    int32_t (*state_list)(
        praas_call_handle *call, praas_bytes prefix, praas_bytes after, size_t limit,
        praas_raw_view *view);
    /* Writes an object if it is at version expected (0: absent); version is what it is then. */
    int32_t (*state_compare_swap)(
        praas_call_handle *call, praas_bytes key, uint64_t expected, praas_bytes value,
        uint64_t *version);
    /* Adds bytes to an object; its new length. */
    int32_t (*state_append)(
        praas_call_handle *call, praas_bytes key, praas_bytes value, uint64_t *len);
    /* Puts a message into a process's mailbox. */
    int32_t (*message_put)(
        praas_call_handle *call, praas_bytes to, praas_bytes key, praas_bytes payload,
        int64_t timeout_us);
    /*
     * Takes a message (or looks at it, by PRAAS_MESSAGE_PEEK) from source (null: anybody); a
     * timeout of zero does not wait.
     */
    int32_t (*message_get)(
        praas_call_handle *call, praas_bytes source, praas_bytes key, uint32_t flags,
        int64_t timeout_us, praas_message_view *message);
    /* Invokes a function, of this process if process is empty. */
    int32_t (*invoke)(
        praas_call_handle *call, praas_bytes process, praas_bytes function, praas_bytes input,
        int64_t timeout_us, praas_raw_view *output);
    /*
     * The world once its generation is above after (UINT64_MAX: as it is): generation (u64), count
     * (u32), and for each member its name's length (u32), name, incarnation (u64) and state (u8: 0
     * starting, 1 ready, 2 swapped, 3 gone), little-endian.
     */
    int32_t (*world)(
        praas_call_handle *call, uint64_t after, int64_t timeout_us, praas_raw_view *view);
    /* Writes a line to the host's log: 0 error, 1 warning, 2 information, 3 debug. */
    void (*log)(praas_call_handle *call, uint32_t level, praas_bytes text);
    /*
     * Invokes a function, of this process if process is empty, without waiting for it and without
     * its output. The timeout is for its beginning.
     */
    int32_t (*invoke_one_way)(
        praas_call_handle *call, praas_bytes process, praas_bytes function, praas_bytes input,
        int64_t timeout_us);
    /*
     * Invokes a function with each of count inputs, and waits for all; each has an outcome of its
     * own, in the order of the inputs.
     */
    int32_t (*invoke_batch)(
        praas_call_handle *call, praas_bytes process, praas_bytes function,
        const praas_bytes *inputs, size_t count, int64_t timeout_us,
        praas_batch_outcome *outcomes);
    /* Reads a state object of a process (empty: this one) by one-sided operations. */
    int32_t (*peer_state)(
        praas_call_handle *call, praas_bytes process, praas_bytes key, int64_t timeout_us,
        praas_raw_view *view);
    /*
     * Memory for the next value of a state object: len bytes at *out, aligned to 64 bytes, holding
     * anything. state_commit makes it the value; a later call replaces it, and the end of the
     * function frees it.
     */
    int32_t (*state_alloc)(praas_call_handle *call, size_t len, uint8_t **out);
    /*
     * Makes the memory of state_alloc an object's value, without copying it, if the object is at
     * version expected (0: absent; UINT64_MAX: whatever it is); version is what it is then. On a
     * conflict the memory stays, for another try; after anything else it is gone.
     */
    int32_t (*state_commit)(
        praas_call_handle *call, praas_bytes key, uint64_t expected, uint64_t *version);
    /*
     * Puts one message into the mailboxes of several processes at once, sharing its bytes: the
     * to_count names at to, or (null) all other members of the world that are not gone. Done if all
     * have acknowledged it; else the code of the first that did not. In any case, but for arguments
     * that cannot be, outcomes has a count (u32) and for each receiver its name's length (u32),
     * name, code (i32), and the length (u32) and text of its error, little-endian.
     */
    int32_t (*message_broadcast)(
        praas_call_handle *call, const praas_bytes *to, size_t to_count, praas_bytes key,
        praas_bytes payload, int64_t timeout_us, praas_raw_view *outcomes);
    /* The id of the invocation. */
    void (*invocation_id)(praas_call_handle *call, praas_invocation_id *id);
    /* Writes a state object that shares a view's memory; the view stays the caller's. */
    int32_t (*state_put_view)(
        praas_call_handle *call, praas_bytes key, praas_raw_view view, uint64_t *version);
    /*
     * The path of the process's directory, whose files go into its images; good for the length of
     * the call.
     */
    int32_t (*state_dir)(praas_call_handle *call, praas_bytes *path);
    /*
     * Has what there is under a key, an object or that there is none, written through to storage,
     * and waits for it: done, it outlives the host. version is what is durable, 0 for none.
     */
    int32_t (*state_persist)(
        praas_call_handle *call, praas_bytes key, int64_t timeout_us, uint64_t *version);
};

PRAAS_SIZE(praas_host_table, 240);
PRAAS_PLACE(praas_host_table, size, 0);
PRAAS_PLACE(praas_host_table, output_alloc, 8);
PRAAS_PLACE(praas_host_table, error_set, 16);
PRAAS_PLACE(praas_host_table, error_text, 24);
PRAAS_PLACE(praas_host_table, name, 32);
PRAAS_PLACE(praas_host_table, incarnation, 40);
PRAAS_PLACE(praas_host_table, cancelled, 48);
PRAAS_PLACE(praas_host_table, deadline_left_us, 56);
PRAAS_PLACE(praas_host_table, view_release, 64);
PRAAS_PLACE(praas_host_table, state_put, 72);
PRAAS_PLACE(praas_host_table, state_view, 80);
PRAAS_PLACE(praas_host_table, state_delete, 88);
PRAAS_PLACE(praas_host_table, state_list, 96);
PRAAS_PLACE(praas_host_table, state_compare_swap, 104);
PRAAS_PLACE(praas_host_table, state_append, 112);
PRAAS_PLACE(praas_host_table, message_put, 120);
PRAAS_PLACE(praas_host_table, message_get, 128);
PRAAS_PLACE(praas_host_table, invoke, 136);
PRAAS_PLACE(praas_host_table, world, 144);
PRAAS_PLACE(praas_host_table, log, 152);
PRAAS_PLACE(praas_host_table, invoke_one_way, 160);
PRAAS_PLACE(praas_host_table, invoke_batch, 168);
PRAAS_PLACE(praas_host_table, peer_state, 176);
PRAAS_PLACE(praas_host_table, state_alloc, 184);
PRAAS_PLACE(praas_host_table, state_commit, 192);
PRAAS_PLACE(praas_host_table, message_broadcast, 200);
PRAAS_PLACE(praas_host_table, invocation_id, 208);
PRAAS_PLACE(praas_host_table, state_put_view, 216);
PRAAS_PLACE(praas_host_table, state_dir, 224);
PRAAS_PLACE(praas_host_table, state_persist, 232);

/* Initialises a praas_function_table; fields that are not named here are zero. */
#define PRAAS_FUNCTION_TABLE(name, flags, entry) \
    {sizeof(praas_function_table), \
     (flags), \
     PRAAS_LITERAL(name), \
     (entry), \
     0 /* concurrency */, \
     0 /* time_ms */, \
     0 /* memory_bytes */}

/* Initialises a praas_function_table; fields that are not named here are zero. */
#define PRAAS_FUNCTION_TABLE_LIMITED(name, flags, entry, concurrency, time_ms, memory_bytes) \
    {sizeof(praas_function_table), \
     (flags), \
     PRAAS_LITERAL(name), \
     (entry), \
     (concurrency), \
     (time_ms), \
     (memory_bytes)}

/* Initialises a praas_module_table; fields that are not named here are zero. */
#define PRAAS_MODULE_TABLE(name, functions) \
    {sizeof(praas_module_table), \
     PRAAS_ABI_VERSION, \
     sizeof(functions) / sizeof(functions)[0], \
     PRAAS_LITERAL(name), \
     (functions)}

#ifdef __cplusplus
}
#endif

/* ---- Writing a module -------------------------------------------------------------------- */

/* Bytes of a string literal, where an initialiser is wanted. */
#define PRAAS_LITERAL(text) {(const uint8_t *)("" text), sizeof("" text) - 1}

/*
 * Defines a function of this name: its body follows. `flags` are PRAAS_FLAG_*, or 0. The body
 * returns PRAAS_OK, or an error made by praas_error or praas_error_pass.
 */
#define PRAAS_FUNCTION(name, flags) PRAAS_FUNCTION_NAMED(name, #name, flags)

/* The same, for a name that is no identifier: PRAAS_FUNCTION_NAMED(state_sum, "state.sum", 0). */
#define PRAAS_FUNCTION_NAMED(name, text, flags)                                                    \
    static int32_t name(praas_call_handle *call, const praas_host_table *host, praas_bytes input); \
    static const praas_function_table praas_function_##name =                                      \
        PRAAS_FUNCTION_TABLE(text, flags, name);                                                   \
    static int32_t name(PRAAS_UNUSED praas_call_handle *call,                                      \
                        PRAAS_UNUSED const praas_host_table *host, PRAAS_UNUSED praas_bytes input)

/*
 * The same, with limits; zero is none: invocations that may run at once, milliseconds that one may
 * run, bytes that one may hold through the host.
 */
#define PRAAS_FUNCTION_LIMITED(name, flags, concurrency, time_ms, memory_bytes)                    \
    static int32_t name(praas_call_handle *call, const praas_host_table *host, praas_bytes input); \
    static const praas_function_table praas_function_##name = PRAAS_FUNCTION_TABLE_LIMITED(        \
        #name, flags, name, concurrency, time_ms, memory_bytes);                                   \
    static int32_t name(PRAAS_UNUSED praas_call_handle *call,                                      \
                        PRAAS_UNUSED const praas_host_table *host, PRAAS_UNUSED praas_bytes input)

/* Names a function of this file for PRAAS_MODULE. */
#define PRAAS_USE(name) &praas_function_##name

/* The module: its name and its functions. Once in a shared library, outside of any namespace. */
#define PRAAS_MODULE(name, ...)                                                                    \
    static const praas_function_table *const praas_module_functions[] = {__VA_ARGS__};             \
    static const praas_module_table praas_module_itself =                                          \
        PRAAS_MODULE_TABLE(name, praas_module_functions);                                          \
    PRAAS_C PRAAS_EXPORT const praas_module_table *praas_module_v1(void);                          \
    const praas_module_table *praas_module_v1(void)                                                \
    {                                                                                              \
        return &praas_module_itself;                                                               \
    }                                                                                              \
    typedef int praas_module_ends_here

/* Whether the host's table has this field: true of all that were in its first version. */
#define PRAAS_HOST_HAS(host, field)                                                                \
    ((host)->size >= offsetof(praas_host_table, field) + sizeof((host)->field))

/* ---- Bytes ------------------------------------------------------------------------------- */

/* No bytes; where an argument is optional, "none". */
static inline praas_bytes praas_none(void)
{
    praas_bytes bytes = {NULL, 0};
    return bytes;
}

/* `len` bytes at `data`. */
static inline praas_bytes praas_bytes_of(const void *data, size_t len)
{
    praas_bytes bytes = {(const uint8_t *)data, len};
    return bytes;
}

/* The bytes of a text that ends with a zero. */
static inline praas_bytes praas_text(const char *text)
{
    return praas_bytes_of(text, strlen(text));
}

/* Whether the bytes are this text. */
static inline int praas_text_is(praas_bytes bytes, const char *text)
{
    size_t len = strlen(text);
    return bytes.len == len && (len == 0 || memcmp(bytes.ptr, text, len) == 0);
}

/* Integers are little-endian in everything that the host lists, as on all machines it runs on. */
static inline uint32_t praas_u32_read(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t praas_u64_read(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* A view that holds nothing: what a result is before it is asked for. */
static inline praas_raw_view praas_view_none(void)
{
    praas_raw_view view = {{NULL, 0}, 0, NULL};
    return view;
}

static inline praas_message_view praas_message_none(void)
{
    praas_message_view message = {{{NULL, 0}, 0, NULL}, {{NULL, 0}, 0, NULL}};
    return message;
}

/* Gives back a view and forgets it, so that doing it twice does no harm. */
static inline void praas_view_end(const praas_host_table *host, praas_raw_view *view)
{
    if (view->handle != NULL) {
        host->view_release(*view);
    }
    *view = praas_view_none();
}

static inline void praas_message_end(const praas_host_table *host, praas_message_view *message)
{
    praas_view_end(host, &message->source);
    praas_view_end(host, &message->payload);
}

/* ---- What a function returns -------------------------------------------------------------- */

/* The output is these bytes. Large ones are better written to output_alloc's memory directly. */
static inline int32_t praas_output(praas_call_handle *call, const praas_host_table *host,
                                   const void *data, size_t len)
{
    uint8_t *out = NULL;
    int32_t code = host->output_alloc(call, len, &out);
    if (code == PRAAS_OK && len > 0) {
        memcpy(out, data, len);
    }
    return code;
}

/* The function fails with this text: return praas_error(call, host, "no such page"). */
static inline int32_t praas_error(praas_call_handle *call, const praas_host_table *host,
                                  const char *text)
{
    host->error_set(call, praas_text(text));
    return PRAAS_STATUS_FUNCTION_ERROR;
}

/*
 * The function fails because something that it asked of the host did, with the host's text. The
 * caller hears of deadlines, cancellation and exhaustion as what they are, of the rest as an error
 * of the function.
 */
static inline int32_t praas_error_pass(praas_call_handle *call, const praas_host_table *host,
                                       int32_t code)
{
    host->error_set(call, host->error_text(call));
    switch (code) {
    case PRAAS_STATUS_DEADLINE_EXCEEDED:
    case PRAAS_STATUS_CANCELLED:
    case PRAAS_STATUS_EXHAUSTED:
        return code;
    case PRAAS_LIMIT_REACHED:
        return PRAAS_STATUS_EXHAUSTED;
    default:
        return PRAAS_STATUS_FUNCTION_ERROR;
    }
}

/* ---- Lists -------------------------------------------------------------------------------- */

/* An object, as state_list tells it. */
typedef struct praas_state_entry {
    praas_bytes key; /* in the view that was read; not ended by a zero */
    uint64_t bytes;
    uint64_t version;
    uint64_t written_unix_ms;
} praas_state_entry;

/*
 * The next object of a list: 1, or 0 at its end. `rest` is the view's bytes at first, and what is
 * left of them from then on.
 */
static inline int praas_state_next(praas_bytes *rest, praas_state_entry *entry)
{
    size_t key_len;
    if (rest->len < 4) {
        return 0;
    }
    key_len = praas_u32_read(rest->ptr);
    if (rest->len - 4 < key_len || rest->len - 4 - key_len < 24) {
        return 0;
    }
    entry->key = praas_bytes_of(rest->ptr + 4, key_len);
    entry->bytes = praas_u64_read(rest->ptr + 4 + key_len);
    entry->version = praas_u64_read(rest->ptr + 12 + key_len);
    entry->written_unix_ms = praas_u64_read(rest->ptr + 20 + key_len);
    *rest = praas_bytes_of(rest->ptr + 28 + key_len, rest->len - 28 - key_len);
    return 1;
}

/* A member of the application, as `world` tells it. */
typedef struct praas_member {
    praas_bytes name; /* in the view that was read; not ended by a zero */
    uint64_t incarnation;
    uint8_t state; /* PRAAS_MEMBER_* */
} praas_member;

enum {
    PRAAS_MEMBER_STARTING = 0,
    PRAAS_MEMBER_READY = 1,
    PRAAS_MEMBER_SWAPPED = 2,
    PRAAS_MEMBER_GONE = 3
};

/* As it is now, where `world` wants a generation. */
#define PRAAS_WORLD_NOW UINT64_MAX

/*
 * Begins to read what `world` gave: the generation, and in `rest` the members. 0 if it is none.
 */
static inline int praas_world_begin(praas_bytes view, uint64_t *generation, praas_bytes *rest)
{
    if (view.len < 12) {
        return 0;
    }
    *generation = praas_u64_read(view.ptr);
    *rest = praas_bytes_of(view.ptr + 12, view.len - 12);
    return 1;
}

/* The next member: 1, or 0 at the end. */
static inline int praas_world_next(praas_bytes *rest, praas_member *member)
{
    size_t name_len;
    if (rest->len < 4) {
        return 0;
    }
    name_len = praas_u32_read(rest->ptr);
    if (rest->len - 4 < name_len || rest->len - 4 - name_len < 9) {
        return 0;
    }
    member->name = praas_bytes_of(rest->ptr + 4, name_len);
    member->incarnation = praas_u64_read(rest->ptr + 4 + name_len);
    member->state = rest->ptr[12 + name_len];
    *rest = praas_bytes_of(rest->ptr + 13 + name_len, rest->len - 13 - name_len);
    return 1;
}

/* What became of a broadcast at one receiver, as message_broadcast tells it. */
typedef struct praas_outcome {
    praas_bytes process; /* in the view that was read, as the text; neither ended by a zero */
    int32_t code;
    praas_bytes text;
} praas_outcome;

/* Begins to read what message_broadcast gave: in `rest` the outcomes. 0 if it is none. */
static inline int praas_outcomes_begin(praas_bytes view, praas_bytes *rest)
{
    if (view.len < 4) {
        return 0;
    }
    *rest = praas_bytes_of(view.ptr + 4, view.len - 4);
    return 1;
}

/* The next outcome: 1, or 0 at the end. */
static inline int praas_outcome_next(praas_bytes *rest, praas_outcome *outcome)
{
    size_t name_len, text_len;
    if (rest->len < 4) {
        return 0;
    }
    name_len = praas_u32_read(rest->ptr);
    if (rest->len - 4 < name_len || rest->len - 4 - name_len < 8) {
        return 0;
    }
    text_len = praas_u32_read(rest->ptr + 8 + name_len);
    if (rest->len - 12 - name_len < text_len) {
        return 0;
    }
    outcome->process = praas_bytes_of(rest->ptr + 4, name_len);
    outcome->code = (int32_t)praas_u32_read(rest->ptr + 4 + name_len);
    outcome->text = praas_bytes_of(rest->ptr + 12 + name_len, text_len);
    *rest = praas_bytes_of(rest->ptr + 12 + name_len + text_len,
                           rest->len - 12 - name_len - text_len);
    return 1;
}

#endif /* PRAAS_H */
