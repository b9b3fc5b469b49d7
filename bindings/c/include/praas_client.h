/*
 * Clients of cloud processes in C and C++: libpraas_client (cargo build --release -p praas-c).
 *
 *     praas_client_options options = PRAAS_CLIENT_OPTIONS;
 *     praas_client *client = NULL;
 *     praas_buffer output = PRAAS_BUFFER;
 *     options.ticket_path = "demo.ticket";              // praas ticket demo > demo.ticket
 *     if (praas_client_open(&options, &client) != PRAAS_OK ||
 *         praas_client_invoke(client, "p", "greet", "you", 3, 1000000, &output) != PRAAS_OK) {
 *         fprintf(stderr, "%s\n", praas_client_error(client));
 *     }
 *     praas_buffer_free(&output);
 *     praas_client_close(client);
 *
 *     cc -I bindings/c/include program.c -L target/release -lpraas_client
 *
 * Every call returns a code of praas.h: PRAAS_OK, PRAAS_STATUS_* or one of those from 100 on, and
 * praas_client_error has the text of the last that was not PRAAS_OK. Nothing is thrown or unwound
 * through these functions.
 *
 * A client, and what it gives out, may move from thread to thread, but is used by one at a time;
 * threads that call at the same time have a client each. Arguments are read during the call only.
 * Names and keys are UTF-8 and end with a zero. A buffer that a call has filled is the caller's,
 * who gives it to praas_buffer_free once, before or after the client is closed; on an error nothing
 * is put into it. A pointer for a result may be NULL, if the result is not wanted.
 *
 * Timeouts are in microseconds; negative is for ever. After PRAAS_STATUS_OUTCOME_UNKNOWN it is not
 * known whether the function ran; no call runs a function twice.
 */
#ifndef PRAAS_CLIENT_H
#define PRAAS_CLIENT_H

#include "praas.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A client: its connections, and the calls under way. */
typedef struct praas_client praas_client;

/* Bytes that are the caller's until they are freed. */
typedef struct praas_buffer {
    const uint8_t *data;
    size_t len;
    void *handle;
} praas_buffer;

/* A buffer that holds nothing. */
#define PRAAS_BUFFER {NULL, 0, NULL}

/* How a client waits for results. */
enum {
    PRAAS_WAIT_ADAPTIVE = 0, /* polls for a moment, then sleeps */
    PRAAS_WAIT_WARM = 1,     /* sleeps */
    PRAAS_WAIT_HOT = 2       /* polls: a processor of its own */
};

/* How to get in. What is NULL or zero is as if it were not there. */
typedef struct praas_client_options {
    size_t size; /* of this struct */
    /* The ticket, as `praas ticket APPLICATION` prints it: a file that holds it, or the text. */
    const char *ticket_path;
    const char *ticket;
    /*
     * The agent that knows where processes are: the run directory of its node (else PRAAS_RUN_DIR
     * of the environment), or its addresses, separated by commas.
     */
    const char *run_dir;
    const char *directory;
    /* Transports that may be used, as in "shm,tcp"; NULL: all. */
    const char *transports;
    uint32_t wait; /* PRAAS_WAIT_* */
} praas_client_options;

/* Options in which nothing is said. */
#define PRAAS_CLIENT_OPTIONS {sizeof(praas_client_options), NULL, NULL, NULL, NULL, NULL, 0}

/* Makes a client; it connects when it calls. *client is NULL if it fails. */
int32_t praas_client_open(const praas_client_options *options, praas_client **client);

/* Closes the connections. Calls under way are given up. NULL is nothing. */
void praas_client_close(praas_client *client);

/*
 * The text of the last error of a client, or, with NULL, of the last praas_client_open of this
 * thread: good until the next call with the client, or the next open. Never NULL.
 */
const char *praas_client_error(const praas_client *client);

/* Frees a buffer and makes it hold nothing. */
void praas_buffer_free(praas_buffer *buffer);

/* Invokes a function of a process, which is started if it does not run, and waits for its output. */
int32_t praas_client_invoke(praas_client *client, const char *process, const char *function,
                            const void *input, size_t input_len, int64_t timeout_us,
                            praas_buffer *output);

/* Begins an invocation; many may be under way. *call names it for the calls below. */
int32_t praas_client_submit(praas_client *client, const char *process, const char *function,
                            const void *input, size_t input_len, int64_t timeout_us,
                            uint64_t *call);

/* Waits for an invocation to end, and takes its output. */
int32_t praas_client_wait(praas_client *client, uint64_t call, praas_buffer *output);

/*
 * Waits for any invocation to end: which, and its output. PRAAS_NOT_FOUND: none is under way, or
 * the time has passed first. Another code is that of the invocation that *call then names.
 */
int32_t praas_client_wait_any(praas_client *client, int64_t timeout_us, uint64_t *call,
                              praas_buffer *output);

/* Gives up on an invocation: its function is told, its result is dropped. */
int32_t praas_client_cancel(praas_client *client, uint64_t call);

/*
 * Invokes a function without waiting for it and without its output. It is sent, and sent again to
 * wherever its process is next, until its function has begun, at most until the time has passed. A
 * client does so in its calls: who has nothing else to do calls praas_client_one_way_wait.
 */
int32_t praas_client_one_way(praas_client *client, const char *process, const char *function,
                             const void *input, size_t input_len, int64_t timeout_us);

/*
 * Waits until it is known of every one-way invocation whether it has begun, at most so long: how
 * many are under way still, and how many of all so far have not begun for an error.
 */
int32_t praas_client_one_way_wait(praas_client *client, int64_t timeout_us, uint64_t *pending,
                                  uint64_t *failed);

/* Puts a message into a process's mailbox and waits until it is there. */
int32_t praas_client_put(praas_client *client, const char *process, const char *key,
                         const void *body, size_t body_len, int64_t timeout_us);

/*
 * Puts one message into the mailboxes of several processes at once, sharing its bytes. codes, if it
 * is not NULL, has room for count codes, one for each process. Returns PRAAS_OK if all have it,
 * else the first other code.
 */
int32_t praas_client_broadcast(praas_client *client, const char *const *processes, size_t count,
                               const char *key, const void *body, size_t body_len,
                               int64_t timeout_us, int32_t *codes);

/*
 * Takes a message out of a process's mailbox, from a source (NULL: anybody), looking for it until
 * the time has passed; with a timeout of 0 it looks once. PRAAS_NOT_FOUND: there is none.
 */
int32_t praas_client_get(praas_client *client, const char *process, const char *source,
                         const char *key, int64_t timeout_us, praas_buffer *from,
                         praas_buffer *body);

/* Reads a state object of a process. PRAAS_NOT_FOUND: there is none. */
int32_t praas_client_state_get(praas_client *client, const char *process, const char *key,
                               int64_t timeout_us, praas_buffer *value);

/* Writes a state object of a process; its new version. */
int32_t praas_client_state_put(praas_client *client, const char *process, const char *key,
                               const void *value, size_t value_len, int64_t timeout_us,
                               uint64_t *version);

/* Deletes a state object of a process. PRAAS_NOT_FOUND: there was none. */
int32_t praas_client_state_delete(praas_client *client, const char *process, const char *key,
                                  int64_t timeout_us);

/*
 * Lists at most limit state objects of a process whose keys begin with prefix and come after after
 * (NULL: from the first): read the buffer with praas_state_next.
 */
int32_t praas_client_state_list(praas_client *client, const char *process, const char *prefix,
                                const char *after, uint32_t limit, int64_t timeout_us,
                                praas_buffer *list);

#ifdef __cplusplus
}
#endif

#endif /* PRAAS_CLIENT_H */
