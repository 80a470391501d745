/* A server of known times: answers POST /v1/completions with a chunked SSE stream and writes down when each chunk left.

   pacer [--ttft-us 50000] [--itl-us 5000] [--tokens 64] [--flood 0] [--cpu N] [--requests 4096] [--out FILE]
         [--hold-every K --hold-us N] [--model NAME]

   One thread, one epoll, 127.0.0.1, any free port ("port N" on standard output). Chunk k of a request is due at
   received + ttft + k * itl, received being the kernel's receive stamp (SO_TIMESTAMPNS) of the request's last byte: an
   absolute schedule, so that no delay is handed on. It never sleeps while an answer is under way: a processor that has
   slept sends later than it says. --flood N sends N chunks to each stream in turn, as fast
   as sockets take them. Each event is an HTTP chunk and a send() of its own, but usage, [DONE] and the last chunk, which share one.
   The answer's id ends in the request's number: that is how a client's records are told apart.

   SIGTERM or SIGINT writes FILE, int64 throughout: magic, tokens, ttft_ns, itl_ns, flood, requests, refused, realtime -
   monotonic at start and at end, fields of a request (F); then for each request F + 2 * (tokens + 1) numbers: number,
   connection, received by the kernel, received by us (CLOCK_MONOTONIC both; the first 0 without a stamp), FNV-1a of
   the X-Request-ID header, sends that found the socket full, pieces sent, spare; and for each piece (tokens, then the
   tail) the clock just before and just after its send().
   --hold-every K --hold-us N: a fault on purpose. Every Kth piece waits N us between its "before" and its send(). */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x3152454341504b4bLL
#define FIELDS 8
#define STREAMS_MAX 1024
#define HEAD_MAX 8192
#define READ_BYTES 65536

struct stream {
    int fd, blocked, answering, closing, piece, at; /* at: place in `active` */
    int64_t connection, body_left, base_ns, due_ns, *record;
    size_t head_len, sent, first_len, word_len, last_len, tail_len;
    char head[HEAD_MAX + 1], first[1024], word[640], last[640], tail[1024];
};

static volatile sig_atomic_t stopping;
static int64_t tokens = 64, ttft_ns = 50000000, itl_ns = 5000000, flood, requests_max = 4096, hold_every, hold_ns;
static int64_t requests, refused, connections, width, *records, offset_ns;
static const char *model = "pacer";
static struct stream *active[STREAMS_MAX];
static int active_count, open_count, epoll_fd;

static void on_signal(int number) { (void)number, stopping = 1; }

static int64_t clock_ns(clockid_t id) {
    struct timespec at;
    clock_gettime(id, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static int64_t realtime_offset_ns(void) {
    int64_t best = INT64_MAX, offset = 0;
    for (int i = 0; i < 1000; i++) {
        int64_t before = now_ns(), real = clock_ns(CLOCK_REALTIME), after = now_ns();
        if (after - before < best) best = after - before, offset = real - (before + after) / 2;
    }
    return offset;
}

static void die(const char *what) { perror(what), exit(1); }

static void watch(struct stream *s, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = s};
    if (epoll_ctl(epoll_fd, operation, s->fd, &event)) die("epoll_ctl");
}

/* `active`: a heap by due_ns when paced, a plain list in a flood. */
static int before(int a, int b) { return active[a]->due_ns < active[b]->due_ns; }

static void swap(int a, int b) {
    struct stream *kept = active[a];
    active[a] = active[b], active[b] = kept;
    active[a]->at = a, active[b]->at = b;
}

static void settle(int at) {
    if (flood) return;
    for (; at && before(at, (at - 1) / 2); at = (at - 1) / 2) swap(at, (at - 1) / 2);
    for (;;) {
        int least = at;
        for (int child = 2 * at + 1; child <= 2 * at + 2; child++)
            if (child < active_count && before(child, least)) least = child;
        if (least == at) return;
        swap(at, least), at = least;
    }
}

static void activate(struct stream *s) {
    s->at = active_count, active[active_count++] = s;
    settle(s->at);
}

static void deactivate(struct stream *s) {
    int at = s->at;
    if (at < 0) return;
    swap(at, --active_count), s->at = -1;
    if (at < active_count) settle(at);
}

static void hang_up(struct stream *s) {
    deactivate(s);
    close(s->fd), open_count--;
    s->fd = -1; /* freed by the loop, once epoll's batch is through */
}

static size_t chunk(char *out, const char *event) {
    return (size_t)sprintf(out, "%zx\r\ndata: %s\n\n\r\n", strlen(event) + 8, event);
}

static void write_answer(struct stream *s, int64_t number) {
    static const char *form = "{\"id\":\"cmpl-%08llx\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"%s\","
                              "\"choices\":[%s%s%s],\"usage\":%s}";
    static const char *choice = "{\"index\":0,\"text\":\" word\",\"logprobs\":null,\"finish_reason\":";
    static const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                              "Transfer-Encoding: chunked\r\n\r\n";
    char event[512], usage[128];
    unsigned long long id = (unsigned long long)number;
    snprintf(event, sizeof event, form, id, model, choice, "null", "}", "null");
    s->word_len = chunk(s->word, event);
    snprintf(event, sizeof event, form, id, model, choice, "\"length\"", "}", "null");
    s->last_len = chunk(s->last, event);
    s->first_len = (size_t)sprintf(s->first, "%s%s", head, tokens > 1 ? s->word : s->last);
    snprintf(usage, sizeof usage, "{\"prompt_tokens\":1,\"completion_tokens\":%lld,\"total_tokens\":%lld}",
             (long long)tokens, (long long)tokens + 1);
    snprintf(event, sizeof event, form, id, model, "", "", "", usage);
    s->tail_len = chunk(s->tail, event);
    s->tail_len += chunk(s->tail + s->tail_len, "[DONE]");
    s->tail_len += (size_t)sprintf(s->tail + s->tail_len, "0\r\n\r\n");
}

static const char *piece_of(struct stream *s, size_t *len) {
    if (s->piece == tokens) return *len = s->tail_len, s->tail;
    if (s->piece == 0) return *len = s->first_len, s->first;
    if (s->piece == tokens - 1) return *len = s->last_len, s->last;
    return *len = s->word_len, s->word;
}

/* Send the piece that is due. Returns 0 when the stream has nothing more to send now. */
static int send_piece(struct stream *s) {
    size_t len;
    const char *bytes = piece_of(s, &len);
    int64_t *times = s->record + FIELDS + 2 * s->piece;
    if (!s->sent) {
        times[0] = now_ns();
        if (hold_every && (s->record[0] + s->piece) % hold_every == hold_every - 1)
            while (now_ns() < times[0] + hold_ns) {}
    }
    ssize_t taken = send(s->fd, bytes + s->sent, len - s->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    int64_t after_ns = now_ns();
    if (taken < 0 && errno != EAGAIN) return hang_up(s), 0;
    s->sent += taken > 0 ? (size_t)taken : 0;
    if (s->sent < len) {
        s->record[5]++, s->blocked = 1;
        deactivate(s), watch(s, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
        return 0;
    }
    times[1] = after_ns, s->sent = 0;
    s->record[6] = ++s->piece;
    if (s->piece <= tokens) {
        s->due_ns = s->base_ns + ttft_ns + itl_ns * (s->piece < tokens ? s->piece : tokens - 1);
        settle(s->at);
        return 1;
    }
    deactivate(s), s->answering = 0;
    if (s->closing) hang_up(s);
    return 0;
}

static int64_t tag_of(const char *head) {
    const char *at = strcasestr(head, "\r\nx-request-id:");
    uint64_t hash = 14695981039346656037ULL;
    if (!at) return 0;
    for (at += 15; *at == ' ';) at++;
    for (; *at && *at != '\r'; at++) hash = (hash ^ (unsigned char)*at) * 1099511628211ULL;
    return (int64_t)hash;
}

static void say(struct stream *s, const char *status, const char *body) {
    char text[1024];
    int len = snprintf(text, sizeof text, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       status, strlen(body), body);
    if (send(s->fd, text, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT) != len) s->closing = 1;
    if (s->closing) hang_up(s);
}

static void answer(struct stream *s, int64_t kernel_ns, int64_t user_ns) {
    char *head = s->head, body[256];
    s->head_len = 0;
    s->closing = strcasestr(head, "\r\nconnection: close") != NULL;
    if (!strncmp(head, "GET ", 4)) {
        snprintf(body, sizeof body, "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\"}]}", model);
        return say(s, "200 OK", body);
    }
    if (strncmp(head, "POST /v1/completions ", 21)) return say(s, "404 Not Found", "{\"message\":\"/v1/completions\"}");
    if (requests == requests_max) return refused++, say(s, "503 Full", "{\"message\":\"no room for more records\"}");
    s->record = records + requests * width;
    int64_t fields[FIELDS] = {requests, s->connection, kernel_ns, user_ns, tag_of(head), 0, 0, 0};
    memcpy(s->record, fields, sizeof fields);
    write_answer(s, requests++);
    s->piece = 0, s->sent = 0, s->answering = 1;
    s->base_ns = kernel_ns ? kernel_ns : user_ns;
    s->due_ns = s->base_ns + ttft_ns;
    activate(s);
}

/* recvmsg: the bytes, and the kernel's stamp of the last segment among them, on our clock. */
static ssize_t receive(int fd, char *data, int64_t *kernel_ns) {
    char control[256];
    struct iovec part = {data, READ_BYTES};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
    *kernel_ns = 0;
    for (struct cmsghdr *c = got > 0 ? CMSG_FIRSTHDR(&message) : NULL; c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec at;
            memcpy(&at, CMSG_DATA(c), sizeof at);
            *kernel_ns = at.tv_sec * 1000000000LL + at.tv_nsec - offset_ns;
        }
    return got;
}

static void hear(struct stream *s) {
    static char data[READ_BYTES];
    int64_t kernel_ns;
    ssize_t got = receive(s->fd, data, &kernel_ns);
    int64_t user_ns = now_ns();
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0 || s->answering) return hang_up(s); /* nothing may come before the answer has gone */
    if (s->head_len == 0 || !strstr(s->head, "\r\n\r\n")) {
        size_t room = HEAD_MAX - s->head_len, part = (size_t)got < room ? (size_t)got : room;
        memcpy(s->head + s->head_len, data, part);
        s->head_len += part, s->head[s->head_len] = 0;
        char *end = strstr(s->head, "\r\n\r\n");
        if (!end && s->head_len == HEAD_MAX) return hang_up(s);
        if (!end) return;
        size_t whole = (size_t)(end + 4 - s->head), heard = s->head_len - part;
        end[4] = 0, s->head_len = whole;
        char *length = strcasestr(s->head, "\r\ncontent-length:");
        s->body_left = length ? strtoll(length + 17, NULL, 10) : 0;
        got -= (ssize_t)(whole - heard);
    }
    s->body_left -= got;
    if (s->body_left < 0) return hang_up(s);
    if (s->body_left == 0) answer(s, kernel_ns, user_ns);
}

static void take_in(int listener) {
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    if (open_count == STREAMS_MAX) return refused++, (void)close(fd);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    struct stream *s = calloc(1, sizeof *s);
    if (!s) die("calloc");
    s->fd = fd, s->at = -1, s->connection = connections++, open_count++;
    watch(s, EPOLL_CTL_ADD, EPOLLIN);
}

static void serve(int listener) {
    struct epoll_event events[STREAMS_MAX];
    while (!stopping) {
        int ready = epoll_wait(epoll_fd, events, STREAMS_MAX, active_count ? 0 : 50);
        for (int i = 0; i < ready; i++) {
            struct stream *s = events[i].data.ptr;
            if (!s) {
                take_in(listener);
                continue;
            }
            if (s->blocked && events[i].events & EPOLLOUT) {
                s->blocked = 0, watch(s, EPOLL_CTL_MOD, EPOLLIN);
                activate(s);
            }
            if (events[i].events & ~(uint32_t)EPOLLOUT) hear(s);
            if (s->fd < 0) free(s);
        }
        if (flood)
            for (int at = active_count - 1; at >= 0; at--) {
                struct stream *s = active[at];
                for (int64_t i = 0; i < flood && send_piece(s); i++) {}
                if (s->fd < 0) free(s);
            }
        else
            for (int at = 0; at < STREAMS_MAX && active_count && active[0]->due_ns <= now_ns(); at++) {
                struct stream *s = active[0];
                send_piece(s);
                if (s->fd < 0) free(s);
            }
    }
}

static void write_records(const char *path) {
    int64_t head[10] = {MAGIC, tokens, ttft_ns, itl_ns, flood, requests, refused, offset_ns, realtime_offset_ns(), FIELDS};
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(head, sizeof head, 1, file) != 1) die(path);
    if (requests && fwrite(records, sizeof *records * (size_t)width, (size_t)requests, file) != (size_t)requests) die(path);
    if (fclose(file)) die(path);
}

int main(int argc, char **argv) {
    const char *out = NULL;
    int64_t cpu = -1;
    for (int i = 1; i + 1 < argc; i += 2) {
        int64_t value = strtoll(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--ttft-us")) ttft_ns = value * 1000;
        else if (!strcmp(argv[i], "--itl-us")) itl_ns = value * 1000;
        else if (!strcmp(argv[i], "--tokens")) tokens = value;
        else if (!strcmp(argv[i], "--flood")) flood = value;
        else if (!strcmp(argv[i], "--cpu")) cpu = value;
        else if (!strcmp(argv[i], "--requests")) requests_max = value;
        else if (!strcmp(argv[i], "--hold-every")) hold_every = value;
        else if (!strcmp(argv[i], "--hold-us")) hold_ns = value * 1000;
        else if (!strcmp(argv[i], "--out")) out = argv[i + 1];
        else if (!strcmp(argv[i], "--model") && strlen(argv[i + 1]) < 64) model = argv[i + 1];
        else return fprintf(stderr, "pacer: %s is not an option of mine; its comment lists them\n", argv[i]), 2;
    }
    if (tokens < 1 || tokens > 100000 || requests_max < 1 || requests_max > 1000000 || argc % 2 == 0)
        return fprintf(stderr, "pacer: options come in pairs; tokens 1..100000, requests 1..1000000\n"), 2;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= 0 && (CPU_SET((int)cpu, &set), sched_setaffinity(0, sizeof set, &set))) die("--cpu");
    width = FIELDS + 2 * (tokens + 1);
    records = malloc(sizeof *records * (size_t)(width * requests_max));
    if (!records) die("records");
    memset(records, 0, sizeof *records * (size_t)(width * requests_max)); /* no page fault while it is timed */
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* not to outlive a bench that was killed */
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL), sigaction(SIGINT, &action, NULL);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, 512)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event)) die("epoll");
    offset_ns = realtime_offset_ns();
    printf("port %d\n", ntohs(address.sin_port)), fflush(stdout);
    serve(listener);
    if (out) write_records(out);
    return 0;
}
