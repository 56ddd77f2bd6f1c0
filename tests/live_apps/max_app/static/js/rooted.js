const form = new FormData();
form.append("image", new Blob(["pixels"], { type: "image/png" }), "a.png");
fetch("/model/predict", { method: "POST", body: form }).then((answer) => answer.json()).then((seen) => {
  document.querySelector("output").textContent = seen.status;
});
