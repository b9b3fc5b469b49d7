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
