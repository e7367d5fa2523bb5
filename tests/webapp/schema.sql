-- Tables of the web application. On the active node, as the database's administrator:
--   mariadb ha_app < schema.sql
-- The database and the account ha_user@localhost exist before. May be run again.

CREATE TABLE IF NOT EXISTS users (
    id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
    uid CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL UNIQUE,
    name VARCHAR(100) NOT NULL,
    created_at DATETIME(6) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS accounts (
    id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL UNIQUE,
    role ENUM('viewer', 'editor') NOT NULL,
    password_hash VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at DATETIME(6) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- The cookie holds a random token, the table its SHA-256: who reads the table cannot log in with it.
CREATE TABLE IF NOT EXISTS sessions (
    token_hash CHAR(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
    account_id BIGINT UNSIGNED NOT NULL,
    created_at DATETIME(6) NOT NULL,
    expires_at DATETIME(6) NOT NULL,
    KEY (expires_at),
    FOREIGN KEY (account_id) REFERENCES accounts (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS login_attempts (
    id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    address VARCHAR(45) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    at DATETIME(6) NOT NULL,
    KEY (name, at),
    KEY (address, at),
    KEY (at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- name is what the person typed; stored_name is what lies in the uploads directory.
CREATE TABLE IF NOT EXISTS files (
    id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY,
    stored_name CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL UNIQUE,
    name VARCHAR(255) COLLATE utf8mb4_bin NOT NULL,
    size BIGINT UNSIGNED NOT NULL,
    owner VARCHAR(64) NOT NULL,
    stored ENUM('stored', 'alone') NOT NULL,
    alone_reason VARCHAR(200) NULL,
    created_at DATETIME(6) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS settings (
    name VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
    value VARCHAR(255) NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- The key of the form tokens before a login. It lies here so that a form survives a failover.
-- By row: a replica that ran the statement would draw another number.
SET SESSION binlog_format = 'ROW';
INSERT IGNORE INTO settings VALUES ('form_key', HEX(RANDOM_BYTES(32)));

-- For the replication delay in the status strip.
GRANT SLAVE MONITOR ON *.* TO 'ha_user'@'localhost';
