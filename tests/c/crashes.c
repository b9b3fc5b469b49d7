/* A module in C whose functions come to a bad end; the tables are those of docs/abi.md. */

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { const void *ptr; size_t len; } Bytes;
typedef int32_t (*EntryFn)(void *call, const void *host, Bytes input);

/* The first version of the table: it ends before the limits. */
typedef struct { size_t size; uint64_t flags; Bytes name; EntryFn entry; } FunctionTable;
typedef struct {
    size_t size;
    uint32_t abi_version, function_count;
    Bytes name;
    const FunctionTable *const *functions;
} ModuleTable;

static volatile uint64_t sink;

static uint64_t overflow(uint64_t depth)
{
    volatile uint64_t pad[64];
    pad[depth % 64] = depth;
    sink += pad[depth % 64];
    return depth == UINT64_MAX ? 0 : overflow(depth + 1) + pad[depth % 64];
}

static int is(Bytes input, const char *name)
{
    return input.len == strlen(name) && memcmp(input.ptr, name, input.len) == 0;
}

static int32_t crash(void *call, const void *host, Bytes input)
{
    (void)call;
    (void)host;
    if (is(input, "segmentation fault"))
        *(volatile int *)(uintptr_t)8 = 1;
    if (is(input, "stack overflow"))
        sink = overflow(0);
    if (is(input, "abort"))
        abort();
    if (is(input, "exit"))
        exit(0);
    if (is(input, "exit at once"))
        _Exit(0);
    if (is(input, "illegal instruction"))
        raise(SIGILL);
    return 1;
}

static const FunctionTable crash_table = {
    sizeof(FunctionTable), 0, { "c.crashes", 9 }, crash,
};
static const FunctionTable *const functions[] = { &crash_table };
static const ModuleTable module = {
    sizeof(ModuleTable), 1, 1, { "crashes", 7 }, functions,
};

const ModuleTable *praas_module_v1(void)
{
    return &module;
}
