<?php
// Loads the application. Every page and every command starts here.
declare(strict_types=1);

ini_set('display_errors', '0');
ini_set('log_errors', '1');
ini_set('html_errors', '0');
error_reporting(E_ALL);
date_default_timezone_set('UTC');

require __DIR__ . '/config.php';
require __DIR__ . '/answer.php';
require __DIR__ . '/database.php';
require __DIR__ . '/cluster.php';
require __DIR__ . '/session.php';
require __DIR__ . '/login.php';
require __DIR__ . '/users.php';
require __DIR__ . '/names.php';
require __DIR__ . '/files.php';
require __DIR__ . '/upload.php';
require __DIR__ . '/page.php';
