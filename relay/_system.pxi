# What the core needs of the kernel and of libc, where Cython has no declaration of its own or one call is to do two things.

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    #else
    #define malloc_trim(keep) 0
    #endif
    #ifdef CYTHON_WITHOUT_ASSERTIONS
    #define RELAY_SPARES 256
    #else
    #define RELAY_SPARES 0
    #endif
    #ifndef TCP_NOTSENT_LOWAT
    #define TCP_NOTSENT_LOWAT 25
    #endif

    /* What every client socket gets; the sockets that a listener accepts inherit it. What waits must wait with us and be
       counted: with kernel defaults a client that never reads swallows 4 MB. Harmless on a Unix socket. */
    static void relay_tune(int fd) {
        int one = 1, lowat = 16384;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof lowat);
    }

    /* accept4; the peer's address, IPv4 mapped, zero for a Unix socket. */
    static int relay_accept(int listener, unsigned char address[16], int tune) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        int fd = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        memset(address, 0, 16);
        if (fd < 0)
            return fd;
        if (tune)
            relay_tune(fd);
        if (peer.ss_family == AF_INET6) {
            memcpy(address, &((struct sockaddr_in6 *)&peer)->sin6_addr, 16);
        } else if (peer.ss_family == AF_INET) {
            address[10] = address[11] = 255;
            memcpy(address + 12, &((struct sockaddr_in *)&peer)->sin_addr, 4);
        }
        return fd;
    }

    /* send, for sockets that never block. glibc's is a point of cancellation, which in a process with a second thread (the
       log's) costs two atomic operations for each frame. And the kernel leaves no return address predicted and little of
       the user's code cached: each call and each line less is felt, so where it can be the instruction stands in place. */
    static inline ssize_t relay_send(int fd, const void *data, size_t size) {
    #ifdef __x86_64__
        register long flags __asm__("r10") = MSG_DONTWAIT | MSG_NOSIGNAL;
        register const void *address __asm__("r8") = NULL;
        register long length __asm__("r9") = 0;
        ssize_t sent;
        __asm__ volatile("syscall" : "=a"(sent) : "0"((long)SYS_sendto), "D"((long)fd), "S"(data), "d"(size), "r"(flags),
                         "r"(address), "r"(length) : "rcx", "r11", "memory");
        if (sent >= 0)
            return sent;
        errno = (int)-sent;
        return -1;
    #else
        return syscall(SYS_sendto, fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
    #endif
    }

    static int relay_watch(int ep, int op, int fd, unsigned events, unsigned long long data) {
        struct epoll_event event;
        memset(&event, 0, sizeof event);
        event.events = events;
        event.data.u64 = data;
        return epoll_ctl(ep, op, fd, &event);
    }
    """
    void relay_tune(int fd)
    int relay_accept(int listener, unsigned char *address, bint tune)
    ssize_t relay_send(int fd, const void *data, size_t size)
    int relay_watch(int ep, int op, int fd, unsigned events, unsigned long long data)
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int eventfd(unsigned int count, int flags)
    enum: EFD_CLOEXEC, EFD_NONBLOCK
    int epoll_create1(int flags)
    int epoll_wait(int ep, epoll_event *events, int most, int timeout)
    enum: EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC
    enum: EPOLLIN, EPOLLOUT
    enum: MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR
    ssize_t recv(int fd, void *data, size_t size, int flags)
    int shutdown(int fd, int how)
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int malloc_trim(size_t keep)
    void *memmem(const void *data, size_t size, const void *part, size_t length)
    void __builtin_prefetch(const void *address)
    const char *RELAY_BUILD
    const uint32_t RELAY_SPARES
