document.title = "é " + document.title;
